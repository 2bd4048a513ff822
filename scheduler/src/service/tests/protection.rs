//! TLS, the bearer token, and reflection, over real sockets.

use super::*;
use lampyris_proto::v1::ListNodesRequest;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

const TOKEN: &str = "0123456789abcdef";
const AUTHORITY: &str = include_str!("../../../testdata/authority.pem");

fn protected(home: &std::path::Path) -> Options {
    let tls = Tls {
        certificate: include_str!("../../../testdata/server.pem").into(),
        key: include_str!("../../../testdata/server.key").into(),
        files: "server.pem, server.key".into(),
    };
    Options { tls: Some(tls), token: Some(TOKEN.into()), ..options(home) }
}

/// A connection by TLS that trusts `authority`.
async fn connect(daemon: &Daemon, authority: &str) -> Result<Channel, tonic::transport::Error> {
    let address = daemon.address.replace("http://", "https://");
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    Endpoint::from_shared(address).expect("an address").tls_config(tls)?.connect().await
}

/// A call with `token`.
fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().expect("ASCII");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

#[tokio::test]
async fn only_who_trusts_and_has_the_token_gets_in() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(protected(home.path()));
    let channel = connect(&daemon, AUTHORITY).await.expect("connects");
    let mut client = SchedulerServiceClient::new(channel.clone());
    client.list_nodes(with_token(ListNodesRequest::default(), Some(TOKEN))).await.expect("lists");
    for token in [None, Some("0123456789abcdeX"), Some("")] {
        let refused = client.list_nodes(with_token(ListNodesRequest::default(), token)).await;
        let status = refused.expect_err("refused");
        assert_eq!(status.code(), Code::Unauthenticated, "{token:?}: {status}");
    }
    let mut worker = WorkerServiceClient::new(channel.clone());
    let (_up, messages) = mpsc::channel(1);
    let refused = worker.join(ReceiverStream::new(messages)).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = service_names(channel, None).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_without_tls_or_of_another_authority_does_not_get_in() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(protected(home.path()));
    let plain = Endpoint::from_shared(daemon.address.clone()).expect("an address").connect().await;
    if let Ok(channel) = plain {
        let mut client = SchedulerServiceClient::new(channel);
        let request = with_token(ListNodesRequest::default(), Some(TOKEN));
        client.list_nodes(request).await.expect_err("speaks TLS only");
    }
    // Its own certificate is no authority.
    let other = include_str!("../../../testdata/server.pem");
    assert!(connect(&daemon, other).await.is_err());
    daemon.stop().await;
}

/// Names of all services, by reflection.
async fn service_names(channel: Channel, token: Option<&str>) -> Result<Vec<String>, Status> {
    let mut client = ServerReflectionClient::new(channel);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = with_token(tokio_stream::iter([ask]), token);
    let mut answers = client.server_reflection_info(asked).await?.into_inner();
    let answer = answers.message().await?.expect("one answer");
    let ServerReflectionResponse { message_response, .. } = answer;
    let Some(MessageResponse::ListServicesResponse(list)) = message_response else {
        panic!("another answer: {message_response:?}");
    };
    Ok(list.service.into_iter().map(|service| service.name).collect())
}

#[tokio::test]
async fn reflection_names_every_service() {
    let home = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(options(home.path()));
    let channel = Endpoint::from_shared(daemon.address.clone()).expect("an address");
    let names = service_names(channel.connect().await.expect("connects"), None).await;
    let names = names.expect("is answered");
    for service in
        ["lampyris.v1.SchedulerService", "lampyris.v1.WorkerService", "grpc.health.v1.Health"]
    {
        assert!(names.iter().any(|name| name == service), "{service} is not in {names:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_certificate_or_key_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().expect("a folder");
    let good = protected(home.path()).tls.expect("set");
    let refused = |tls: Tls| {
        let options = Options { tls: Some(tls), ..protected(home.path()) };
        options.build().err().expect("refused").to_string()
    };
    let garbage = refused(Tls { certificate: "token".into(), ..good.clone() });
    assert!(garbage.starts_with("server.pem, server.key: the certificate is not PEM"), "{garbage}");
    let garbage = refused(Tls { key: String::new(), ..good.clone() });
    assert!(garbage.contains("the key is not PEM"), "{garbage}");
    let other = refused(Tls { certificate: AUTHORITY.into(), ..good });
    assert!(other.starts_with("server.pem, server.key: "), "{other}");
    assert!(!other.contains("transport error"), "{other}");
}

#[tokio::test]
async fn nobody_else_reads_the_state_whatever_the_umask() {
    use std::os::unix::fs::MetadataExt;
    let home = tempfile::tempdir().expect("a folder");
    let state = home.path().join("state");
    let daemon = Daemon::start(options(&state));
    daemon.client().await.submit_job(wish("a")).await.expect("accepted");
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&state).expect("a folder") {
        let entry = entry.expect("readable");
        assert_eq!(mode(&entry.path()), 0o600, "{entry:?}");
        names.push(entry.file_name());
    }
    assert!(names.len() >= 3, "database, its log, lock: {names:?}");
    daemon.stop().await;
}
