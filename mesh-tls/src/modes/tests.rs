use mesh_core::resource::{Invalid, Selector};

use super::*;

const ROOT: &str = "istio-system";

fn mtls(mode: MutualTlsMode) -> MutualTls {
    MutualTls { mode }
}

fn policy(namespace: &str, name: &str, mode: MutualTlsMode) -> Resource<PeerAuthentication> {
    let spec = PeerAuthentication { mtls: Some(mtls(mode)), ..Default::default() };
    Resource::new(namespace, name, spec)
}

fn selecting(mut policy: Resource<PeerAuthentication>) -> Resource<PeerAuthentication> {
    policy.spec.selector = Some(Selector::new([("app", "web")]));
    policy
}

fn with_port(
    mut policy: Resource<PeerAuthentication>,
    port: u16,
    mode: MutualTlsMode,
) -> Resource<PeerAuthentication> {
    policy.spec.port_level_mtls.insert(port, mtls(mode));
    policy
}

fn aged(mut policy: Resource<PeerAuthentication>, year: u16) -> Resource<PeerAuthentication> {
    policy.meta.creation_timestamp = format!("{year}-01-01T00:00:00Z");
    policy
}

fn compile(policies: &[Resource<PeerAuthentication>]) -> TlsModes {
    let web = Labels::from([("app".to_owned(), "web".to_owned())]);
    TlsModes::compile(policies, ROOT, "default", &web)
}

fn told(modes: &TlsModes, port: u16) -> (Mode, &str) {
    let found = modes.for_port(port);
    (found.mode, found.source.as_ref().map_or("", ResourceRef::name))
}

#[test]
fn each_level_inherits_from_the_one_above() {
    use MutualTlsMode::{Disable, Permissive, Strict, Unset};
    let mesh = policy(ROOT, "mesh", Strict);
    assert_eq!(told(&compile(&[]), 1), (Mode::Permissive, ""));
    assert_eq!(told(&compile(&[policy(ROOT, "mesh", Unset)]), 1), (Mode::Permissive, ""));
    assert_eq!(told(&compile(std::slice::from_ref(&mesh)), 1), (Mode::Strict, "mesh"));
    let unset = [selecting(policy("default", "w", Unset)), policy("default", "n", Unset), mesh.clone()];
    assert_eq!(told(&compile(&unset), 1), (Mode::Strict, "mesh"));
    let namespace = [mesh, policy("default", "n", Disable)];
    assert_eq!(told(&compile(&namespace), 1), (Mode::Disable, "n"));
    let mut workload = namespace.to_vec();
    workload.push(selecting(policy("default", "w", Permissive)));
    assert_eq!(told(&compile(&workload), 1), (Mode::Permissive, "w"));
    // Other namespaces and other workloads are nobody's business here.
    let others = [
        policy("elsewhere", "n", Strict),
        Resource {
            spec: PeerAuthentication {
                selector: Some(Selector::new([("app", "reviews")])),
                ..policy("default", "w", Strict).spec
            },
            ..policy("default", "w", Strict)
        },
    ];
    assert_eq!(told(&compile(&others), 1), (Mode::Permissive, ""));
}

#[test]
fn of_several_on_a_level_the_oldest_decides_even_when_unset() {
    use MutualTlsMode::{Disable, Permissive, Strict, Unset};
    let modes = compile(&[
        aged(policy("default", "young", Disable), 2025),
        aged(policy("default", "old", Unset), 2024),
        policy(ROOT, "mesh", Strict),
        aged(with_port(selecting(policy("default", "second", Permissive)), 2, Disable), 2025),
        aged(with_port(selecting(policy("default", "first", Unset)), 1, Disable), 2024),
    ]);
    assert_eq!(told(&modes, 1), (Mode::Disable, "first"));
    assert_eq!(told(&modes, 2), (Mode::Strict, "mesh"));
}

#[test]
fn ports_count_beside_a_selector_only_and_inherit_when_unset() {
    use MutualTlsMode::{Disable, Permissive, Strict, Unset};
    let namespace = with_port(policy("default", "n", Strict), 1, Disable);
    let workload = selecting(policy("default", "w", Unset));
    let workload = with_port(with_port(workload, 2, Unset), 3, Permissive);
    let modes = compile(&[namespace.clone(), workload.clone()]);
    assert_eq!(told(&modes, 1), (Mode::Strict, "n"));
    assert_eq!(told(&modes, 2), (Mode::Strict, "n"));
    assert_eq!(told(&modes, 3), (Mode::Permissive, "w"));
    assert_eq!(modes.ports().count(), 1);
    assert!(validate(&workload, ROOT).is_empty());
    assert_eq!(
        validate(&namespace, ROOT)[0].to_string(),
        "PeerAuthentication default/n: spec.portLevelMtls: modes of single ports count beside a selector \
         only; add one; it has no effect"
    );
}

#[test]
fn selectors_in_the_root_namespace_do_not_count() {
    use MutualTlsMode::{Disable, Strict};
    let rooted = selecting(policy(ROOT, "rooted", Disable));
    assert_eq!(told(&compile(std::slice::from_ref(&rooted)), 1), (Mode::Permissive, ""));
    let web = Labels::from([("app".to_owned(), "web".to_owned())]);
    let modes = TlsModes::compile([&rooted, &policy(ROOT, "mesh", Strict)], ROOT, ROOT, &web);
    assert_eq!(told(&modes, 1), (Mode::Strict, "mesh"));
    let said = validate(&rooted, ROOT);
    assert!(said[0].to_string().contains("does not count in the root namespace istio-system"));
    assert!(!said[0].is_error());
}

#[test]
fn what_could_not_be_read_is_strict_and_stands_first() {
    use MutualTlsMode::{Disable, Permissive};
    let mut broken = with_port(selecting(policy("default", "broken", Disable)), 1, Disable);
    broken.invalid = Some(Invalid { reason: "spec.mtls.mode: unknown".to_owned() });
    let good = aged(selecting(policy("default", "good", Permissive)), 2020);
    let modes = compile(&[good, aged(broken, 2025)]);
    assert_eq!(told(&modes, 1), (Mode::Strict, "broken"));
}

#[test]
fn turning_strict_keeps_the_meshs_tls_only() {
    let tls = Transport::Tls { sni: None, alpn: None };
    let passed = Transport::Passthrough { sni: None };
    assert!(Mode::Strict.keeps(&tls));
    assert!(!Mode::Strict.keeps(&passed) && !Mode::Strict.keeps(&Transport::Plaintext));
    assert!(Mode::Permissive.keeps(&Transport::Plaintext) && Mode::Disable.keeps(&tls));
}
