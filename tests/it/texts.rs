//! Texts that nobody can keep, in every field of every call: each is refused by its name, before anything is done.

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use tenantd::proto::DESCRIPTORS;
use tenantd::proto::v1::{CreateTenantRequest, ListTenantsRequest, SuspendTenantRequest, TenantAdministrator};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::harness::{Client, Fleet, Spec};

/// Messages as they are, without their types.
#[derive(Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(into, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        bytes::Buf::advance(from, bytes::Buf::remaining(from));
        Ok(Some(()))
    }
}

/// The message with a NUL in its one text at `path`, and that path; one for each of its texts.
fn with_nul(descriptor: &MessageDescriptor) -> Vec<(String, DynamicMessage)> {
    let mut made = Vec::new();
    for field in descriptor.fields() {
        match field.kind() {
            Kind::String => made.push((field.name().to_owned(), message(descriptor, &field, text(&field)))),
            Kind::Message(inner) if inner.package_name() == "tenantd.v1" && !field.is_list() => {
                made.extend(with_nul(&inner).into_iter().map(|(path, inner)| {
                    (format!("{}.{path}", field.name()), message(descriptor, &field, Value::Message(inner)))
                }));
            }
            _ => {}
        }
    }
    made
}

fn text(field: &FieldDescriptor) -> Value {
    let text = Value::String("a\0b".to_owned());
    if field.is_list() { Value::List(vec![text]) } else { text }
}

fn message(descriptor: &MessageDescriptor, field: &FieldDescriptor, value: Value) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    message.set_field(field, value);
    message
}

#[tokio::test]
async fn a_nul_is_refused_by_its_fields_name_wherever_it_is() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let mut looked_at = 0;
    // Statements are looked at where they are taken apart, and a mark for its own revision alone.
    let elsewhere = ["QueryService", "WatchRoutes"];
    for service in pool.services().filter(|service| service.package_name() == "tenantd.v1") {
        for method in service.methods() {
            let path = format!("/{}/{}", service.full_name(), method.name());
            if elsewhere.iter().any(|name| path.contains(name)) {
                continue;
            }
            for (field, message) in with_nul(&method.input()) {
                let mut grpc = Grpc::new(daemon.client.keyed());
                grpc.ready().await.unwrap();
                let request = Request::new(message.encode_to_vec());
                let answer = grpc.server_streaming(request, path.parse().unwrap(), Raw).await;
                let refused = answer.map(drop).expect_err(&format!("{path} takes a NUL in {field}"));
                assert_eq!(refused.code(), Code::InvalidArgument, "{path} {field}: {refused:?}");
                // A selector is one of several fields, and an id may be called by what it is the id of.
                let named = refused.get_error_details().bad_request().unwrap().field_violations[0].field.clone();
                assert!(named == field || (field == "tenant" && named == "code"), "{path} {field}: {named}");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 30, "{looked_at}");
    fleet.stop(daemon).await;
}

fn named(refused: &Status) -> Vec<String> {
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let details = refused.get_error_details();
    details.bad_request().unwrap().field_violations.iter().map(|bad| bad.field.clone()).collect()
}

async fn create(client: &Client, wish: CreateTenantRequest) -> Result<(), Status> {
    client.tenants().create_tenant(wish).await.map(drop)
}

#[tokio::test]
async fn what_is_too_long_or_invisible_is_refused_and_pages_fit() {
    let fleet = Fleet::new(Spec::default()).await;
    let daemon = fleet.start().await;
    let client = &daemon.client;
    let wish = |code: &str, name: &str| CreateTenantRequest {
        code: code.to_owned(),
        name: name.to_owned(),
        ..CreateTenantRequest::default()
    };
    let long = CreateTenantRequest { legal_name: "x".repeat(3 << 20), ..wish("acme", "\u{200b}\u{200b}") };
    assert_eq!(named(&create(client, long).await.unwrap_err()), ["name", "legal_name"]);
    let administrator = TenantAdministrator { email: "<script>@.".to_owned(), ..TenantAdministrator::default() };
    let script = CreateTenantRequest { administrator: Some(administrator), ..wish("acme", "Acme") };
    assert_eq!(named(&create(client, script).await.unwrap_err()), ["administrator.email"]);
    let twice = ["shop.example.com", "Shop.Example.com."].map(str::to_owned);
    let twice = CreateTenantRequest { hosts: twice.to_vec(), ..wish("acme", "Acme") };
    assert_eq!(named(&create(client, twice).await.unwrap_err()), ["hosts"]);
    client.tenant("acme").await;
    let reason = SuspendTenantRequest {
        tenant: "acme".to_owned(),
        reason: "x".repeat(1_001),
        ..SuspendTenantRequest::default()
    };
    assert_eq!(named(&client.tenants().suspend_tenant(reason).await.unwrap_err()), ["reason"]);

    // What is there from before the bound: a page has as many as fit.
    client.tenant("bolt").await;
    let judge = fleet.judge(fleet.naming.shared_database().as_str()).await;
    judge.batch_execute("UPDATE tenants SET legal_name = repeat('x', 2000000)").await.unwrap();
    let (mut codes, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = ListTenantsRequest { page_size: 0, page_token, state: 0 };
        let page = client.tenants().list_tenants(page).await.unwrap().into_inner();
        codes.push(page.tenants.into_iter().map(|tenant| tenant.code).collect::<Vec<_>>());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(codes, [["acme"], ["bolt"]]);
    fleet.stop(daemon).await;
}
