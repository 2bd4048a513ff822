//! The wire format of `lampyris.v1` as text: what a client or a worker of another release relies on. A line that goes or
//! changes breaks them; new lines do not. `UPDATE_GOLDEN=1` rewrites `testdata/api.txt`.
#![allow(clippy::unwrap_used, reason = "a test panics")]

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto,
};
use std::fmt::Write;
use std::{env, fs, path::Path};

#[test]
fn the_wire_format_is_the_committed_one() {
    let set = FileDescriptorSet::decode(lampyris_proto::v1::DESCRIPTOR).unwrap();
    let mut text = String::new();
    let own = |file: &&FileDescriptorProto| file.package() == "lampyris.v1";
    set.file.iter().filter(own).for_each(|file| write_file(&mut text, file));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/api.txt");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(&path, text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "testdata/api.txt differs; it would be now:\n{text}");
}

#[test]
fn enums_begin_with_unspecified_and_names_carry_their_units() {
    let set = FileDescriptorSet::decode(lampyris_proto::v1::DESCRIPTOR).unwrap();
    for file in set.file.iter().filter(|file| file.package() == "lampyris.v1") {
        let nested = file.message_type.iter().flat_map(|message| &message.enum_type);
        for each in file.enum_type.iter().chain(nested) {
            let first = &each.value[0];
            assert!(first.name().ends_with("_UNSPECIFIED") && first.number() == 0, "{first:?}");
        }
        for field in file.message_type.iter().flat_map(|message| &message.field) {
            let bare = ["time_out", "timeout", "duration", "memory", "interval", "lease"];
            assert!(!bare.contains(&field.name()), "{} needs its unit", field.name());
        }
    }
}

fn write_file(out: &mut String, file: &FileDescriptorProto) {
    file.service.iter().for_each(|service| write_service(out, service));
    file.message_type.iter().for_each(|message| write_message(out, "", message));
    file.enum_type.iter().for_each(|each| write_enum(out, "", each));
}

fn write_service(out: &mut String, service: &ServiceDescriptorProto) {
    writeln!(out, "service {}", service.name()).unwrap();
    for method in &service.method {
        let stream = |streams: bool| if streams { "stream " } else { "" };
        let (input, output) = (short(method.input_type()), short(method.output_type()));
        let (up, down) = (stream(method.client_streaming()), stream(method.server_streaming()));
        writeln!(out, "  {}({up}{input}) -> {down}{output}", method.name()).unwrap();
    }
}

fn write_message(out: &mut String, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}{}", message.name());
    writeln!(out, "message {name}").unwrap();
    for field in &message.field {
        let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
        let oneof = oneof.map(|index| message.oneof_decl[index as usize].name());
        let within = oneof.map(|name| format!(" in {name}")).unwrap_or_default();
        writeln!(out, "  {} {} {}{within}", field.number(), field.name(), kind(field)).unwrap();
    }
    let scope = format!("{name}.");
    message.nested_type.iter().for_each(|nested| write_message(out, &scope, nested));
    message.enum_type.iter().for_each(|each| write_enum(out, &scope, each));
}

fn write_enum(out: &mut String, scope: &str, each: &EnumDescriptorProto) {
    writeln!(out, "enum {scope}{}", each.name()).unwrap();
    for value in &each.value {
        writeln!(out, "  {} {}", value.number(), value.name()).unwrap();
    }
}

fn kind(field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        _ if field.proto3_optional() => "optional ",
        _ => "",
    };
    let name = match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()).to_string(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    format!("{label}{name}")
}

fn short(name: &str) -> &str {
    name.trim_start_matches('.').trim_start_matches("lampyris.v1.")
}
