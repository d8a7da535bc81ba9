//! E-invoices: a message brings the XML, the template attaches it, and what would not be a valid hybrid
//! is refused. No error and no line of the log quotes the XML.

use crate::support::files::copy_folder;
use crate::support::templates::{Templates, outcome};
use crate::support::{INPUT, OUTPUT, Stage, log, real_templates, received, record_of, run};
use pressrun::function::outcome::{ErrorCode, Failure, Outcome};
use serde_json::{Value, json};

const SECTION: &str = "standards = [\"a-3b\"]\ne-invoice = \"factur-x.xml\"";
const EN_16931: &str = "urn:cen.eu:en16931:2017";
const BASIC: &str = "urn:cen.eu:en16931:2017#compliant#urn:factur-x.eu:1p0:basic";
const MINIMUM: &str = "urn:factur-x.eu:1p0:minimum";
const XRECHNUNG: &str = "urn:cen.eu:en16931:2017#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0";

/// Attaches the XML as the data say.
const BODY: &str = r#"#data.text
#let default = (name: "factur-x.xml", relationship: "alternative", mime-type: "text/xml", extra: "")
#let (name, relationship, mime-type, extra) = default + data.at("attach", default: (:))
#if name != "" {
  let xml = read("/files/" + data.at("file", default: "factur-x.xml"), encoding: none)
  pdf.attach(name, if extra != "" { bytes(extra) } else { xml }, relationship: relationship, mime-type: mime-type, description: "The invoice")
}"#;

fn xml() -> String {
    std::fs::read_to_string(real_templates().join("invoice/files/factur-x.xml")).unwrap()
}

fn with_guideline(guideline: &str) -> String {
    xml().replace(&format!("<ram:ID>{EN_16931}</ram:ID>"), &format!("<ram:ID>{guideline}</ram:ID>"))
}

fn templates() -> Templates {
    Templates::with(BODY).and_section(SECTION).and("note/files/factur-x.xml", xml())
}

/// A message with an XML of its own, attached as `attach` says.
fn message(stage: &Stage, xml: impl Into<bytes::Bytes>, attach: &Value) -> Value {
    stage.s3.put(INPUT, "invoices/1.xml", xml);
    let data = json!({"text": "Dear customer", "attach": attach});
    let files = json!({"factur-x.xml": "invoices/1.xml"});
    record_of("m-1", json!({"template": "note", "data": data, "files": files}).to_string())
}

async fn failure(stage: &mut Stage, record: Value) -> Failure {
    match outcome(stage, record).await {
        Outcome::PermanentFailure(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_object_and_the_announcement_say_which_level_it_is() {
    run(async {
        let templates = templates();
        let mut stage = Stage::with_queues(templates.config(), None, Some("done")).await;
        for (guideline, relationship, level) in
            [(EN_16931, "source", "EN 16931"), (BASIC, "alternative", "BASIC"), (MINIMUM, "data", "MINIMUM")]
        {
            let record = message(&stage, with_guideline(guideline), &json!({"relationship": relationship}));
            // The second time it is delivered again, and not made again.
            for record in [record.clone(), received(2, record)] {
                assert_eq!(stage.handle(vec![record]).await, [""; 0]);
                let announced: Value = serde_json::from_str(&stage.sqs.messages("done").last().unwrap().body).unwrap();
                assert_eq!(announced["eInvoice"], level);
            }
            let object = stage.s3.object(OUTPUT, "note/m-1.pdf").unwrap();
            assert_eq!(object.metadata["e-invoice"], level);
            let conformance = format!("<fx:ConformanceLevel>{level}</fx:ConformanceLevel>");
            assert!(String::from_utf8_lossy(&object.body).contains(&conformance));
            stage.s3.clear(OUTPUT);
        }
    });
}

#[test]
fn a_long_e_invoice_is_one_when_its_parts_are_joined() {
    run(async {
        let body = format!("#let part = json(sys.inputs.part)\n#part.first\n#if part.index == 0 [\n{BODY}\n]");
        let templates = Templates::with(&body)
            .and_section(&format!("{SECTION}\nparts = {{ of = \"/rows\", size = 2 }}"))
            .and("note/files/factur-x.xml", xml());
        let mut stage = templates.stage().await;
        stage.s3.put(INPUT, "invoices/1.xml", xml());
        let message = |xml: &str| {
            let data = json!({"text": "Dear customer", "rows": [1, 2, 3, 4, 5]});
            let files = json!({"factur-x.xml": xml});
            record_of("m-1", json!({"template": "note", "data": data, "files": files}).to_string())
        };
        let Outcome::Stored(stored) = outcome(&mut stage, message("invoices/1.xml")).await else { panic!("valid") };
        assert_eq!((stored.parts, stored.pages), (Some(3), 3));
        assert_eq!(stored.e_invoice.unwrap().as_str(), "EN 16931");
        let pdf = stage.pdf("note", "m-1").unwrap();
        assert!(String::from_utf8_lossy(&pdf).contains("<fx:ConformanceLevel>EN 16931</fx:ConformanceLevel>"));
        // What can be known before is not found out after all parts have been rendered.
        stage.s3.put(INPUT, "invoices/2.xml", "none");
        let failure = failure(&mut stage, message("invoices/2.xml")).await;
        assert_eq!(failure.code, ErrorCode::InvalidData, "{}", failure.message);
    });
}

#[test]
fn an_xrechnung_has_its_own_file() {
    run(async {
        let xml = with_guideline(XRECHNUNG);
        let body = "#pdf.attach(\"xrechnung.xml\", read(\"/files/xrechnung.xml\", encoding: none), mime-type: \
                    \"text/xml\", relationship: \"alternative\", description: \"The invoice\")";
        let templates = Templates::with(body)
            .and_section("standards = [\"a-3a\", \"ua-1\"]\ne-invoice = \"xrechnung.xml\"")
            .and("note/files/xrechnung.xml", &xml);
        let templates = templates.and("note/main.typ", format!("#set document(title: \"X\")\n= X\n{body}"));
        let mut stage = templates.stage().await;
        stage.s3.put(INPUT, "x.xml", xml);
        let message = json!({"template": "note", "data": {}, "files": {"xrechnung.xml": "x.xml"}});
        let Outcome::Stored(stored) = outcome(&mut stage, record_of("m-1", message.to_string())).await else {
            panic!("a valid one")
        };
        assert_eq!(stored.e_invoice.unwrap().as_str(), "XRECHNUNG");
        let pdf = stage.pdf("note", "m-1").unwrap();
        assert!(String::from_utf8_lossy(&pdf).contains("<fx:Version>3.0</fx:Version>"));
    });
}

#[test]
fn an_xml_that_makes_no_e_invoice_fails_its_message_for_good() {
    run(async {
        let templates = templates();
        let mut stage = templates.stage().await;
        let root = |start: &str| format!("<{start}><Note>Jane Customer</Note></{}>", start.split(' ').next().unwrap());
        let ubl = "Invoice xmlns=\"urn:oasis:names:specification:ubl:schema:xsd:Invoice-2\"";
        let zugferd_1 = "CrossIndustryDocument xmlns=\"urn:ferd:CrossIndustryDocument:invoice:1p0\"";
        let two = xml().replace("<ram:ID>urn", "<ram:ID>Jane Customer</ram:ID><ram:ID>urn");
        for (xml, expected) in [
            ("Jane Customer".to_owned(), "the invoice's XML is not well-formed: see line 1, column 1"),
            (xml().replace("</ram:Name>", "</Name>"), "the invoice's XML is not well-formed: see line "),
            (
                xml().replace("?>\n", "?>\n<!DOCTYPE a [<!ENTITY b \"Jane Customer\">]>\n"),
                "the invoice's XML has a document type declaration (<!DOCTYPE): remove it",
            ),
            (
                root(ubl),
                "the invoice's XML is UBL, and Factur-X and ZUGFeRD are CII (CrossIndustryInvoice): convert it",
            ),
            (root(zugferd_1), "the invoice's XML is ZUGFeRD 1.0: convert it to Factur-X 1.0 or ZUGFeRD 2.1"),
            (root("Order"), "the invoice's XML is not a CrossIndustryInvoice"),
            (two, "the invoice's XML has 2 guideline identifiers (BT-24"),
            (
                with_guideline("urn:cen.eu:en16931:2017#compliant#urn:zugferd.de:2p0:basic"),
                "has an unknown guideline identifier (BT-24): accepted are urn:factur-x.eu:1p0:minimum, ",
            ),
            (with_guideline("Jane Customer"), "has an unknown guideline identifier (BT-24): accepted are "),
            (
                with_guideline(XRECHNUNG),
                "is of the level XRECHNUNG, which is attached as xrechnung.xml, not as factur-x.xml",
            ),
        ] {
            let record = message(&stage, xml, &json!({}));
            let failure = failure(&mut stage, record).await;
            assert_eq!(failure.code, ErrorCode::InvalidData, "{expected}");
            let start = "the message's file factur-x.xml is not what the template takes: the invoice's XML ";
            assert!(failure.message.starts_with(start) && failure.message.contains(expected), "{}", failure.message);
            assert!(!serde_json::to_string(&failure).unwrap().contains("Jane Customer"), "{failure:?}");
        }
        let latin_1: Vec<u8> = b"<a>Zo\xeb</a>".to_vec();
        let record = message(&stage, latin_1, &json!({}));
        assert!(failure(&mut stage, record).await.message.ends_with("is not UTF-8: byte 5 is not part of a character"));
        assert_eq!(log::take("Jane Customer"), [""; 0]);
        assert_eq!(stage.s3.keys(OUTPUT), [""; 0]);
    });
}

#[test]
fn a_message_without_the_xml_is_told_what_to_bring() {
    run(async {
        let templates = templates();
        let mut stage = templates.stage().await;
        stage.s3.put(INPUT, "invoices/1.xml", xml());
        for files in [json!({}), json!({"xrechnung.xml": "invoices/1.xml"})] {
            let message = json!({"template": "note", "data": {"text": ""}, "files": files});
            let failure = failure(&mut stage, record_of("m-1", message.to_string())).await;
            assert_eq!(failure.code, ErrorCode::InvalidData);
            assert!(
                failure
                    .message
                    .ends_with("the template makes e-invoices, and the message's \"files\" have to name the XML"),
                "{}",
                failure.message
            );
        }
    });
}

#[test]
fn an_xml_that_is_not_attached_as_its_level_wants_fails_its_message_for_good() {
    run(async {
        let templates = templates();
        let mut stage = templates.stage().await;
        for (attach, expected) in [
            (json!({"name": ""}), "factur-x.xml is not attached to the PDF: the template should call pdf.attach("),
            (json!({"name": "invoice.xml"}), "factur-x.xml is not attached to the PDF"),
            (json!({"name": "xrechnung.xml"}), "factur-x.xml is not attached to the PDF"),
            (
                json!({"relationship": "data"}),
                "not for its level, EN 16931: pdf.attach should have relationship: \"alternative\" or \"source\"",
            ),
            (json!({"relationship": "supplement"}), "not for its level, EN 16931"),
            (json!({"mime-type": "application/xml"}), "pdf.attach should have mime-type: \"text/xml\""),
            (json!({"extra": "<a>another</a>"}), "factur-x.xml is attached with other content than the message's file"),
        ] {
            let record = message(&stage, xml(), &attach);
            let failure = failure(&mut stage, record).await;
            assert_eq!(failure.code, ErrorCode::TypstError, "{expected}");
            let message = &failure.message;
            assert!(message.starts_with("error: not an e-invoice: ") && message.contains(expected), "{message}");
        }
        assert_eq!(stage.s3.keys(OUTPUT), [""; 0]);
    });
}

#[test]
fn a_template_that_makes_no_valid_e_invoice_of_its_sample_stops_init() {
    run(async {
        let sample = |xml: &str| templates().and("note/files/factur-x.xml", xml);
        let no_xml = Templates::with("#data.text").and_section(SECTION);
        for (templates, expected) in [
            (
                templates().and_section("e-invoice = \"factur-x.xml\""),
                "note/typst.toml: [tool.pressrun] e-invoice: an e-invoice is a PDF/A-3, so standards has to have one of",
            ),
            (
                templates().and_section("standards = [\"a-3b\"]\ne-invoice = \"invoice.xml\""),
                "note/typst.toml: [tool.pressrun] e-invoice: \"invoice.xml\" is no e-invoice's file",
            ),
            (
                no_xml,
                "template note: its sample.json cannot be rendered\nerror: note/files/factur-x.xml: it is not there",
            ),
            (sample("<a/>"), "error: note/files/factur-x.xml: the invoice's XML is not a CrossIndustryInvoice"),
            (sample("{}"), "error: note/files/factur-x.xml: the invoice's XML is not well-formed"),
            (
                templates().and("note/sample.json", "{\"text\": \"\", \"attach\": {\"name\": \"\"}}"),
                "error: not an e-invoice: factur-x.xml is not attached to the PDF",
            ),
            (sample(&with_guideline(MINIMUM)), "pdf.attach should have relationship: \"data\""),
        ] {
            let reason = templates.refused().await;
            assert!(reason.contains(expected), "expected {expected:?} in {reason:?}");
        }
    });
}

#[test]
fn the_shipped_invoice_is_an_e_invoice_when_its_two_lines_are_there() {
    run(async {
        let templates = Templates::with("#data.text");
        copy_folder(&real_templates(), &templates.path(""));
        let manifest = std::fs::read_to_string(templates.path("invoice/typst.toml")).unwrap();
        let manifest = manifest.replace("# standards", "standards").replace("# e-invoice", "e-invoice");
        let mut stage = templates.and("invoice/typst.toml", manifest).stage().await;
        stage.s3.put(INPUT, "471102.xml", xml());
        let data: Value =
            serde_json::from_slice(&std::fs::read(real_templates().join("invoice/sample.json")).unwrap()).unwrap();
        let message = json!({"template": "invoice", "data": data, "files": {"factur-x.xml": "471102.xml"}});
        assert_eq!(stage.handle(vec![record_of("m-1", message.to_string())]).await, [""; 0]);
        assert_eq!(stage.s3.object(OUTPUT, "invoice/m-1.pdf").unwrap().metadata["e-invoice"], "EN 16931");
    });
}
