//! Client certificates over real TLS, with authorities that the test makes.

use std::path::Path;
use std::process::Output;

use rcgen::ExtendedKeyUsagePurpose;
use tenantd::config::write_private;
use tenantd::proto::v1::resolve_tenant_request::Selector;
use tenantd::proto::v1::{AddTenantHostRequest, ResolveTenantRequest, WhoAmIRequest, WhoAmIResponse};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::harness::{Authority, Client, Daemon, Fleet, Leaf, Spec, reason, tenantd, until};

/// A fleet whose listener has a certificate of `servers`, and takes those of `clients`.
async fn fleet(servers: &Authority, clients: &Authority, client_certificate: &str) -> Fleet {
    let fleet = Fleet::new(Spec::default()).await;
    let leaf = servers.leaf("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    for (file, text) in
        [("listener.pem", &leaf.certificate), ("listener.key", &leaf.key), ("clients.pem", &clients.pem)]
    {
        std::fs::write(fleet.dir.join(file), text).unwrap();
    }
    let quoted = |text: &str| format!("{text:?}");
    fleet.configure(&[
        ("", "listen", quoted("0.0.0.0:0")),
        ("[tls]", "certificate_file", quoted("listener.pem")),
        ("[tls]", "key_file", quoted("listener.key")),
        ("[tls]", "client_ca_file", quoted("clients.pem")),
        ("[tls]", "client_certificate", quoted(client_certificate)),
        ("[[access.certificates]]", "san", quoted("spiffe://example.com/shop")),
        ("[[access.certificates]]", "roles", "[\"resolver\"]".to_owned()),
        ("[[access.certificates]]", "tenants", "[\"acme\", \"bolt\"]".to_owned()),
        ("[[access.certificates]]", "default_tenant", quoted("bolt")),
        // The harness knows one section of a name; the space makes another of it.
        ("[[ access.certificates ]]", "san", quoted("ops.example.com")),
        ("[[ access.certificates ]]", "name", quoted("api-key:first-admin")),
    ]);
    fleet
}

fn endpoint(port: u16, servers: &Authority, leaf: Option<&Leaf>) -> Endpoint {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&servers.pem)).domain_name("localhost");
    if let Some(leaf) = leaf {
        tls = tls.identity(Identity::from_pem(&leaf.certificate, &leaf.key));
    }
    let url = format!("https://127.0.0.1:{port}");
    Endpoint::from_shared(url).unwrap().tls_config(tls).unwrap()
}

async fn whoami(endpoint: &Endpoint, key: Option<&str>) -> Result<WhoAmIResponse, Status> {
    Ok(Client::over(endpoint, key).access().who_am_i(WhoAmIRequest {}).await?.into_inner())
}

fn refusal(answer: Result<WhoAmIResponse, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), reason(&status))
}

#[tokio::test]
async fn a_certificate_is_its_caller() {
    let (servers, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let fleet = fleet(&servers, &clients, "optional").await;
    let daemon = fleet.start().await;
    let admin_key = std::fs::read_to_string(fleet.admin_key_file()).unwrap();
    let admin = Some(admin_key.trim());
    let over = |leaf: Option<&Leaf>| endpoint(daemon.address.port(), &servers, leaf);
    let unauthenticated = (Code::Unauthenticated, "UNAUTHENTICATED".to_owned());

    let shop = over(Some(&clients.client("spiffe://example.com/shop")));
    let me = whoami(&shop, None).await.unwrap();
    assert_eq!(me.principal, "certificate:spiffe://example.com/shop");
    assert_eq!((me.roles.join(" ").as_str(), me.tenants.join(" ").as_str()), ("resolver", "acme bolt"));
    assert_eq!(me.default_tenant, "bolt");
    // A bearer beside it has to be the same caller's.
    assert_eq!(refusal(whoami(&shop, admin).await), unauthenticated);
    let ops = over(Some(&clients.client("ops.example.com")));
    assert_eq!(whoami(&ops, admin).await.unwrap().roles, ["admin"]);
    assert!(whoami(&ops, None).await.unwrap().roles.is_empty());

    // A name that is not in the table says nothing.
    let unknown = over(Some(&clients.client("spiffe://example.com/shop/of/horrors")));
    assert_eq!(refusal(whoami(&unknown, None).await), unauthenticated);
    assert_eq!(whoami(&unknown, admin).await.unwrap().principal, "api-key:first-admin");
    assert_eq!(refusal(whoami(&over(None), None).await), unauthenticated);
    assert_eq!(whoami(&over(None), admin).await.unwrap().principal, "api-key:first-admin");

    // Another authority's certificate, and one for servers, do not even connect.
    for leaf in [
        others.client("spiffe://example.com/shop"),
        clients.leaf("spiffe://example.com/shop", ExtendedKeyUsagePurpose::ServerAuth),
    ] {
        let status = whoami(&over(Some(&leaf)), admin).await.unwrap_err();
        assert_eq!(reason(&status), "", "{status:?}");
    }
    assert!(Client::new(daemon.address, admin).access().who_am_i(WhoAmIRequest {}).await.is_err());

    // Others can reach this listener, so it does not describe itself.
    let mut question = Request::new(tokio_stream::once(ServerReflectionRequest::default()));
    question.metadata_mut().insert("authorization", format!("Bearer {}", admin_key.trim()).parse().unwrap());
    let channel = over(None).connect().await.unwrap();
    let described = ServerReflectionClient::new(channel).server_reflection_info(question).await;
    assert_eq!(described.map(|_| ()).unwrap_err().code(), Code::Unimplemented);
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn where_certificates_are_required_nothing_else_connects() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let fleet = fleet(&servers, &clients, "required").await;
    let daemon = fleet.start().await;
    let admin = std::fs::read_to_string(fleet.admin_key_file()).unwrap();
    let admin = Some(admin.trim());
    let without = whoami(&endpoint(daemon.address.port(), &servers, None), admin).await.unwrap_err();
    assert_eq!(reason(&without), "", "{without:?}");
    let unknown = endpoint(daemon.address.port(), &servers, Some(&clients.client("laptop.example.com")));
    assert_eq!(whoami(&unknown, admin).await.unwrap().principal, "api-key:first-admin");
    fleet.stop(daemon).await;
}

/// `tenantd whoami` with a client file beside the authority's certificate, and the leaf's in a folder below.
fn command_line(dir: &Path, daemon: &Daemon, servers: &Authority, leaf: Option<&Leaf>, key: &str) -> Output {
    std::fs::create_dir_all(dir.join("own")).unwrap();
    std::fs::write(dir.join("servers.pem"), &servers.pem).unwrap();
    let mut text = format!("endpoint = \"https://localhost:{}\"\nca_file = \"servers.pem\"\n", daemon.address.port());
    if let Some(leaf) = leaf {
        std::fs::write(dir.join("own/leaf.pem"), &leaf.certificate).unwrap();
        write_private(&dir.join("own/leaf.key"), &leaf.key).unwrap();
        text += "client_certificate_file = \"own/leaf.pem\"\nclient_key_file = \"own/leaf.key\"\n";
    }
    write_private(&dir.join("client.toml"), &(text + key)).unwrap();
    let elsewhere = dir.join("own");
    let mut command = tenantd();
    command.args(["--output", "json", "--client-config"]).arg(dir.join("client.toml")).arg("whoami");
    command.current_dir(&elsewhere).env("HOME", &elsewhere).output().unwrap()
}

/// The daemon runs beside the thread that waits for the command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_its_certificate() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let fleet = fleet(&servers, &clients, "required").await;
    let daemon = fleet.start().await;
    let with_key = format!("key_file = {:?}\n", fleet.admin_key_file());
    let call = |name: &str, leaf: Option<&Leaf>, key: &str| {
        let dir = fleet.dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        command_line(&dir, &daemon, &servers, leaf, key)
    };
    let principal = |output: &Output| {
        assert!(output.status.success(), "{output:?}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["principal"].as_str().unwrap().to_owned()
    };
    // One that names nobody lets the key in; one that names somebody needs none.
    let laptop = clients.client("laptop.example.com");
    assert_eq!(principal(&call("laptop", Some(&laptop), &with_key)), "api-key:first-admin");
    let shop = clients.client("spiffe://example.com/shop");
    assert_eq!(principal(&call("shop", Some(&shop), "")), "certificate:spiffe://example.com/shop");
    let nobody = call("nobody", Some(&laptop), "");
    assert_eq!(nobody.status.code(), Some(77), "{nobody:?}");
    let without = call("without", None, &with_key);
    assert!(!without.status.success(), "{without:?}");
    fleet.stop(daemon).await;
}

#[tokio::test]
async fn renewed_certificates_count_at_the_next_hangup() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let fleet = fleet(&servers, &clients, "required").await;
    let daemon = fleet.spawn();
    let port = daemon.client.address().port();
    let admin = std::fs::read_to_string(fleet.admin_key_file()).unwrap();
    let whoami = async |servers: &Authority, clients: &Authority| {
        let leaf = clients.client("laptop.example.com");
        whoami(&endpoint(port, servers, Some(&leaf)), Some(admin.trim())).await.is_ok()
    };
    // Who says nothing keeps nobody waiting.
    let _silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(whoami(&servers, &clients).await);
    let leaf = clients.client("laptop.example.com");
    let stays = Client::over(&endpoint(port, &servers, Some(&leaf)), Some(admin.trim()));
    stays.access().who_am_i(WhoAmIRequest {}).await.unwrap();

    // One half of a pair is not enough.
    let (new_servers, new_clients) = (Authority::new(), Authority::new());
    let new = new_servers.leaf("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let write = |file: &str, text: &str| std::fs::write(fleet.dir.join(file), text).unwrap();
    write("listener.pem", &new.certificate);
    write("clients.pem", &new_clients.pem);
    let refused = "the configuration is not read again";
    fleet.expect_log(refused);
    daemon.hang_up();
    until("the problem is told", async || fleet.has_logged(refused).then_some(())).await;
    assert!(fleet.latest().contains("listener.key"), "{}", fleet.latest());
    assert!(whoami(&servers, &clients).await);

    write("listener.key", &new.key);
    daemon.hang_up();
    until("the new pair counts", async || whoami(&new_servers, &new_clients).await.then_some(())).await;
    assert!(!whoami(&servers, &clients).await);
    assert!(!whoami(&new_servers, &clients).await);
    // Who was there before stays.
    stays.access().who_am_i(WhoAmIRequest {}).await.unwrap();
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test]
async fn names_in_the_listeners_certificate_are_no_tenants() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let fleet = fleet(&servers, &clients, "optional").await;
    let daemon = fleet.spawn();
    let admin = std::fs::read_to_string(fleet.admin_key_file()).unwrap();
    let admin = Client::over(&endpoint(daemon.client.address().port(), &servers, None), Some(admin.trim()));
    admin.tenant("acme").await;
    let give = async |host: &str| {
        let (tenant, host) = ("acme".to_owned(), host.to_owned());
        admin.tenants().add_tenant_host(AddTenantHostRequest { tenant, host, ..Default::default() }).await
    };
    let find = async || {
        let selector = Some(Selector::Host("db.example.com".to_owned()));
        admin.router().resolve_tenant(ResolveTenantRequest { selector, ..Default::default() }).await
    };
    give("db.example.com").await.unwrap();
    assert_eq!(find().await.unwrap().into_inner().route.unwrap().code, "acme");

    // A renewed certificate has the name, and from then on it is the daemon's.
    let told = "a tenant has a name of the daemon's own";
    fleet.expect_log(told);
    let renewed = servers.leaf_of(&["localhost", "DB.example.com"], ExtendedKeyUsagePurpose::ServerAuth);
    std::fs::write(fleet.dir.join("listener.pem"), &renewed.certificate).unwrap();
    std::fs::write(fleet.dir.join("listener.key"), &renewed.key).unwrap();
    daemon.hang_up();
    let refusal = until("the name is the daemon's", async || find().await.err()).await;
    assert_eq!(refusal.code(), Code::NotFound);
    until("the tenant that has it is told of", async || fleet.has_logged(told).then_some(())).await;
    assert_eq!(give("db.example.com").await.unwrap_err().code(), Code::InvalidArgument);
    give("acme.db.example.com").await.unwrap();
    daemon.terminate().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_listener_that_others_can_reach_needs_tls() {
    let fleet = Fleet::new(Spec::default()).await;
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.7:7432"] {
        fleet.configure(&[("", "listen", format!("{listen:?}"))]);
        let error = tenantd::config::load(&fleet.config_file()).unwrap_err().to_string();
        assert!(error.contains("listen: ") && error.contains("there is no [tls]"), "{error}");
    }
    fleet.configure(&[("[[access.certificates]]", "san", "\"ci\"".to_owned())]);
    let error = tenantd::config::load(&fleet.config_file()).unwrap_err().to_string();
    assert!(error.contains("client_ca_file"), "{error}");
    fleet.configure(&[]);
    fleet.finish().await;
}
