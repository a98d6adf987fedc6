//! The definitions, taken by a real API server: no field of a resource is lost.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use mesh_controller::crds::definitions;
use serde_json::{Map, Value, json};

use crate::real::Real;

/// Makes the definitions known, and waits until they are served.
pub(crate) async fn install(client: &kube::Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in definitions() {
        let name = crd["metadata"]["name"].as_str().unwrap().to_owned();
        let params = PatchParams::apply("test");
        api.patch(&name, &params, &Patch::Apply(&crd)).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let served = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(30), served).await.unwrap().unwrap();
    }
}

/// A value with every field that a schema has.
fn whole(schema: &Value) -> Value {
    if let Some(one) = schema["enum"].as_array().and_then(|values| values.first()) {
        return one.clone();
    }
    match schema["type"].as_str() {
        Some("string") => match schema["format"].as_str() {
            Some("date-time") => json!("2024-05-01T00:00:00Z"),
            _ => json!("x"),
        },
        Some("integer" | "number") => json!(schema["minimum"].as_i64().unwrap_or(0).max(1)),
        Some("boolean") => json!(true),
        Some("array") => json!([whole(&schema["items"])]),
        Some("object") => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let mut object: Map<_, _> = fields.map(|(name, field)| (name.clone(), whole(field))).collect();
            if schema.get("additionalProperties").is_some() {
                object.insert("8080".into(), whole(&schema["additionalProperties"]));
            }
            Value::Object(object)
        }
        _ => json!(7),
    }
}

#[tokio::test]
#[ignore = "needs kube-apiserver"]
async fn a_real_api_server_keeps_every_field_in_every_version() {
    let real = Real::start().await;
    install(&real.client).await;
    let mut checked = 0;
    for crd in definitions() {
        let text = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
        let (group, kind) = (text("/spec/group"), text("/spec/names/kind"));
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let name = version["name"].as_str().unwrap();
            let schema = &version["schema"]["openAPIV3Schema"]["properties"];
            let kind = GroupVersionKind::gvk(&group, name, &kind);
            let resource = ApiResource::from_gvk_with_plural(&kind, &text("/spec/names/plural"));
            let api: Api<DynamicObject> = Api::namespaced_with(real.client.clone(), "default", &resource);
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": resource.api_version, "kind": resource.kind,
                "metadata": {"name": format!("whole-{name}")},
                "spec": whole(&schema["spec"]),
            }))
            .unwrap();
            // Strictly: an unknown field would be an error rather than lost.
            let made = api.create(&PostParams::default(), &object).await;
            let made = made.unwrap_or_else(|e| panic!("{kind:?}: {e}"));
            assert_eq!(made.data["spec"], object.data["spec"], "{kind:?}");

            // The status, by its own way only.
            let mut with_status = made.clone();
            with_status.data["status"] = whole(&schema["status"]);
            let written =
                api.replace_status(&format!("whole-{name}"), &PostParams::default(), &with_status).await;
            assert_eq!(written.unwrap().data["status"], with_status.data["status"], "{kind:?}");
            checked += 1;
        }
    }
    assert_eq!(checked, 5 * 3 + 3 * 2);
}
