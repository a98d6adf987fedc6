-- Calls one host after the other, each by its last rule.
local hosts, rule, made, n = {{HOSTS}}, {{RULE}}, {}, 0

init = function()
    for i = 1, hosts do
        made[i] = wrk.format("GET", "/api/v" .. rule .. "/item", { ["Host"] = "svc-" .. i .. ":9080" })
    end
end

request = function()
    n = n % hosts + 1
    return made[n]
end
