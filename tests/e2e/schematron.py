"""Prints which rules of a schematron, compiled to XSLT, an XML breaks: schematron.py STYLESHEET XML."""

import json
import sys
import xml.etree.ElementTree as ET

from saxonche import PySaxonProcessor

SVRL = "{http://purl.oclc.org/dsdl/svrl}"


def main() -> None:
    stylesheet, document = sys.argv[1:]
    with PySaxonProcessor(license=False) as processor:
        executable = processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=stylesheet)
        report = ET.fromstring(executable.transform_to_string(source_file=document))
    assert report.findall(f"{SVRL}fired-rule")
    print(json.dumps([(failed.get("id"), failed.get("location")) for failed in report.iter(f"{SVRL}failed-assert")]))


if __name__ == "__main__":
    main()
