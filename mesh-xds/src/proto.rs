//! The messages and services as they are on the wire, made from the files in `proto/`.

#![expect(clippy::allow_attributes, reason = "generated")]

/// Discovery: `envoy.service.discovery.v3`.
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Certificates: `istio.v1.auth`.
pub mod certificate {
    tonic::include_proto!("istio.v1.auth");
}

/// What travels: `mesh.xds.v1`.
pub mod mesh {
    tonic::include_proto!("mesh.xds.v1");
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tonic::server::NamedService;

    use super::certificate::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::SERVICE_NAME as CERTIFICATES,
    };
    use super::discovery::*;
    use crate::ca::{CertificateService, IssueError, IssueRequest};
    use crate::server::{Answer, DiscoveryService, Peer};

    /// A field that holds text or a message.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }

    /// Others speak these protocols, too: names and numbers are theirs.
    #[test]
    fn names_and_numbers_are_the_public_ones() {
        type Source = fn(&Peer, crate::ResourceType, &str) -> Answer;
        type Issuer = fn(IssueRequest) -> std::future::Ready<Result<Vec<String>, IssueError>>;
        assert_eq!(DiscoveryService::<Source>::NAME, "envoy.service.discovery.v3.AggregatedDiscoveryService");
        assert_eq!(CertificateService::<Issuer>::NAME, CERTIFICATES);
        assert_eq!(CERTIFICATES, "istio.v1.auth.IstioCertificateService");

        let request = DeltaDiscoveryRequest {
            node: Some(Node {
                id: "a".into(),
                cluster: "b".into(),
                user_agent_name: "c".into(),
                user_agent_version: "d".into(),
            }),
            type_url: "e".into(),
            resource_names_subscribe: vec!["f".into()],
            resource_names_unsubscribe: vec!["g".into()],
            initial_resource_versions: [("h".into(), "i".into())].into(),
            response_nonce: "j".into(),
            error_detail: Some(Status { code: 3, message: "k".into() }),
        };
        let node = [field(1, b"a"), field(2, b"b"), field(6, b"c"), field(7, b"d")].concat();
        let version = [field(1, b"h"), field(2, b"i")].concat();
        let status = [vec![1 << 3, 3], field(2, b"k")].concat();
        let parts = [
            field(1, &node),
            field(2, b"e"),
            field(3, b"f"),
            field(4, b"g"),
            field(5, &version),
            field(6, b"j"),
            field(7, &status),
        ];
        assert_eq!(request.encode_to_vec(), parts.concat());

        let any = Any { type_url: "a".into(), value: "b".into() };
        let response = DeltaDiscoveryResponse {
            system_version_info: "c".into(),
            resources: vec![Resource { version: "d".into(), resource: Some(any), name: "e".into() }],
            type_url: "f".into(),
            nonce: "g".into(),
            removed_resources: vec!["h".into()],
            control_plane: Some(ControlPlane { identifier: "i".into() }),
        };
        let any = [field(1, b"a"), field(2, b"b")].concat();
        let resource = [field(1, b"d"), field(2, &any), field(3, b"e")].concat();
        let parts = [
            field(1, b"c"),
            field(2, &resource),
            field(4, b"f"),
            field(5, b"g"),
            field(6, b"h"),
            field(7, &field(1, b"i")),
        ];
        assert_eq!(response.encode_to_vec(), parts.concat());
        // What others say besides is passed over.
        let more = [&response.encode_to_vec()[..], &field(8, b"x"), &field(15, b"y")].concat();
        assert_eq!(DeltaDiscoveryResponse::decode(&*more), Ok(response));

        let request = IstioCertificateRequest { csr: "a".into(), validity_duration: 60 };
        assert_eq!(request.encode_to_vec(), [field(1, b"a"), vec![3 << 3, 60]].concat());
        let response = IstioCertificateResponse { cert_chain: vec!["a".into(), "b".into()] };
        assert_eq!(response.encode_to_vec(), [field(1, b"a"), field(1, b"b")].concat());
    }
}
