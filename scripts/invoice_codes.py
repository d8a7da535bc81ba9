#!/usr/bin/env python3
"""Writes the names of GOBL's codes that templates/invoice prints, from the definitions in a clone of invopop/gobl.

    git clone https://github.com/invopop/gobl
    scripts/invoice_codes.py gobl

Two files come of it, in templates/invoice: codes.json (taxes, tags, identities, inboxes, means of payment, official
marks, units) and extensions.json (why there is no tax, what tax law sees in a party), which fewer invoices need. Both
are by language, then by kind or extension, then by code, and have the languages of templates/packages/local/languages
only. What is translated there by hand is left out: it is nearer to how people speak. Where regimes give one code
different names, the differing ones stand under "regimes". GOBL is Apache-2.0, copyright Invopop Ltd.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
INVOICE = REPOSITORY / "templates/invoice"
LANGUAGES = REPOSITORY / "templates/packages/local/languages/1.0.0/languages.json"

# Addons that live in modules of their own by now: the commits that took them out of GOBL's repository.
MOVED_AWAY = {"br-nfe-v4": "5c15dc7c", "br-nfse-v1": "5c15dc7c", "mx-cfdi-v4": "5c0b5034", "pt-saft-v1": "312f4155"}

# Extensions of a tax whose values say why it is not charged.
EXEMPTIONS = re.compile(r"-(exempt|exemption)$")

# Extensions of a party that readers look for: shorter names than GOBL has.
PARTIES = {
    "ar-arca-vat-status": {"en": "VAT status", "es": "Condición frente al IVA"},
    "it-sdi-fiscal-regime": {"en": "Tax regime", "it": "Regime fiscale"},
    "mx-cfdi-fiscal-regime": {"en": "Tax regime", "es": "Régimen fiscal"},
    "mx-cfdi-use": {"en": "Use of the CFDI", "es": "Uso del CFDI"},
}

# Of values, what only repeats the name of the rate.
REPEATED = {"Exempt", "Not subject", "Not taxable", "Reverse charge"}

# Tags that tell programs how to treat the document and its reader nothing.
UNPRINTED_TAGS = {"b2g", "bypass", "goods", "services", "global", "return"}

# GOBL names stamps in comments of its source only.
STAMPS = {
    "ade-ref": {"en": "AdE reference", "it": "Riferimento AdE"},
    "ade-void-ref": {"en": "AdE voiding reference", "it": "Riferimento annullamento AdE"},
    "arca-cae": {"en": "CAE"},
    "arca-cae-expiry": {"en": "CAE valid until", "es": "Vencimiento del CAE"},
    "arca-qr": {"en": "ARCA verification", "es": "Verificación ARCA"},
    "at-app-id": {"en": "AT software certificate", "pt": "Programa certificado n.º"},
    "at-atcud": {"en": "ATCUD"},
    "at-doc-code": {"en": "AT document code", "pt": "Código AT do documento"},
    "at-hash": {"en": "AT signature", "pt": "Assinatura AT"},
    "at-hash-full": {"en": "AT full signature", "pt": "Assinatura AT completa"},
    "at-qr": {"en": "AT verification", "pt": "Verificação AT"},
    "at-ts": {"en": "AT time stamp", "pt": "Data e hora AT"},
    "cfdi-serial": {"en": "CFDI certificate number", "es": "N.º de certificado CFDI"},
    "cfdi-sig": {"en": "CFDI seal", "es": "Sello digital del CFDI"},
    "dian-cude": {"en": "CUDE"},
    "dian-qr": {"en": "DIAN verification", "es": "Verificación DIAN"},
    "favat-hash": {"en": "KSeF checksum", "pl": "Skrót KSeF"},
    "favat-id": {"en": "KSeF number", "pl": "Numer KSeF"},
    "favat-ksef-acquisition-date": {"en": "KSeF acceptance", "pl": "Data przyjęcia w KSeF"},
    "favat-ksef-number": {"en": "KSeF number", "pl": "Numer KSeF"},
    "favat-qr": {"en": "KSeF verification", "pl": "Weryfikacja KSeF"},
    "iapr-hash": {"en": "myDATA authentication", "el": "Κωδικός αυθεντικοποίησης"},
    "iapr-mark": {"en": "MARK", "el": "ΜΑΡΚ"},
    "iapr-provider": {"en": "myDATA provider", "el": "Πάροχος"},
    "iapr-qr": {"en": "myDATA verification", "el": "Επαλήθευση myDATA"},
    "iapr-uid": {"en": "UID"},
    "ksef-id": {"en": "KSeF number", "pl": "Numer KSeF"},
    "sat-chain": {"en": "SAT original string", "es": "Cadena original del SAT"},
    "sat-provider-rfc": {"en": "Certification provider RFC", "es": "RFC del proveedor de certificación"},
    "sat-serial": {"en": "SAT certificate number", "es": "N.º de certificado SAT"},
    "sat-sig": {"en": "SAT seal", "es": "Sello digital del SAT"},
    "sat-timestamp": {"en": "SAT certification", "es": "Fecha de certificación del SAT"},
    "sat-url": {"en": "SAT verification", "es": "Verificación SAT"},
    "sat-uuid": {"en": "Fiscal folio", "es": "Folio fiscal"},
    "sefaz-auth": {"en": "SEFAZ authorisation", "pt": "Protocolo de autorização"},
    "sefaz-key": {"en": "NF-e access key", "pt": "Chave de acesso"},
    "tbai-code": {"en": "TicketBAI"},
    "tbai-qr": {"en": "TicketBAI verification", "es": "Verificación TicketBAI"},
    "verifactu-qr": {"en": "VERI*FACTU verification", "es": "Verificación VERI*FACTU"},
    "zatca-qr": {"en": "ZATCA verification"},
}

# So are the means of payment of addons.
MEANS = {
    "cash+treasury": {"en": "Cash at the treasury", "it": "Contanti presso Tesoreria"},
    "cheque+post-office": {"en": "Payment at the post office", "it": "Pagamento presso ufficio postale"},
    "credit-transfer+foreign": {"en": "Bank transfer from abroad", "el": "Μεταφορά από το εξωτερικό"},
    "direct-debit+post-office": {"en": "Direct debit of a postal account", "it": "Domiciliazione postale"},
    "direct-debit+riba": {"en": "RIBA", "it": "Ricevuta bancaria (RIBA)"},
    "direct-debit+rid": {"en": "RID"},
    "direct-debit+rid-fast": {"en": "Fast RID", "it": "RID veloce"},
    "direct-debit+rid-utility": {"en": "RID utilities", "it": "RID utenze"},
    "direct-debit+sepa-b2b": {"en": "SEPA direct debit B2B"},
    "direct-debit+sepa-core": {"en": "SEPA direct debit CORE"},
    "online+pagopa": {"en": "PagoPA"},
    "online+wallet": {"en": "Electronic wallet", "es": "Monedero electrónico"},
    "other+payment-slip": {"en": "Payment slip", "it": "Bollettino bancario"},
    "other+special-account": {"en": "Giro on special accounts", "it": "Giroconto su conti di contabilità speciale"},
    "other+tax-receipt": {"en": "Tax receipt", "it": "Quietanza erario"},
    "other+grocery-vouchers": {"en": "Grocery vouchers", "es": "Vales de despensa"},
    "other+in-kind": {"en": "Payment in kind", "es": "Dación en pago"},
    "other+subrogation": {"en": "Subrogation", "es": "Pago por subrogación"},
    "other+consignment": {"en": "Consignment", "es": "Pago por consignación"},
    "other+debt-relief": {"en": "Debt relief", "es": "Condonación"},
    "other+novation": {"en": "Novation", "es": "Novación"},
    "other+merger": {"en": "Merger", "es": "Confusión"},
    "other+remission": {"en": "Remission of debt", "es": "Remisión de deuda"},
    "other+expiration": {"en": "Expiration", "es": "Prescripción o caducidad"},
    "other+satisfy-creditor": {"en": "To the creditor’s satisfaction", "es": "A satisfacción del acreedor"},
    "other+services": {"en": "Services", "es": "Aplicación de servicios"},
    "other+advance": {"en": "Advance payments", "es": "Aplicación de anticipos"},
    "other+intermediary": {"en": "Intermediary", "es": "Intermediario"},
}

# What the complements of Mexico's invoices hold.
COMPLEMENTS = {
    "account_number": {"en": "Account number", "es": "Número de cuenta"},
    "curp": {"en": "CURP"},
    "e_wallet_id": {"en": "E-wallet", "es": "Monedero"},
    "employer_registration": {"en": "Employer registration", "es": "Registro patronal"},
    "food-vouchers": {"en": "Food vouchers", "es": "Vales de despensa"},
    "fuel-account-balance": {"en": "Fuel account balance", "es": "Estado de cuenta de combustibles"},
    "issue_date_time": {"en": "Issued", "es": "Fecha"},
    "name": {"en": "Name", "es": "Nombre"},
    "purchase_code": {"en": "Purchase", "es": "Folio de operación"},
    "purchase_date_time": {"en": "Purchased", "es": "Fecha de compra"},
    "rate": {"en": "Rate", "es": "Cuota"},
    "service_station_code": {"en": "Service station", "es": "Estación de servicio"},
    "social_security": {"en": "Social security number", "es": "Número de seguridad social"},
    "subtotal": {"en": "Subtotal"},
    "tax_code": {"en": "RFC"},
    "total": {"en": "Total"},
    "type": {"en": "Type", "es": "Tipo"},
    "vendor_tax_code": {"en": "Vendor’s RFC", "es": "RFC del vendedor"},
}


def git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", clone, *arguments], capture_output=True, text=True, check=True).stdout


def definitions(clone: Path) -> list[dict]:
    """Of regimes and addons, those that have moved away last."""
    names = git(clone, "ls-tree", "--name-only", "HEAD", "data/regimes/", "data/addons/").split()
    objects = [f"HEAD:{name}" for name in names]
    for addon, commit in MOVED_AWAY.items():
        if f"data/addons/{addon}.json" not in names:
            objects.append(f"{commit}^:data/addons/{addon}.json")
    return [json.loads(git(clone, "show", name)) for name in objects]


def units(clone: Path) -> dict[str, str]:
    """The codes of UN/ECE for units that GOBL has keys for."""
    source = git(clone, "show", "HEAD:org/unit.go")
    keys = dict(re.findall(r"^\t(Unit\w+)\s+Unit = [`\"](\w+)[`\"]", source, re.MULTILINE))
    return {code: keys[name] for name, code in re.findall(r'^\t\{(Unit\w+), .*"(\w+)"\},', source, re.MULTILINE)}


def tax_name(category: dict) -> dict[str, str]:
    """A short name, but two letters alone say nothing: ST is the sales tax, IGIC is what people call it."""
    names = category["name"] | {}
    if len(category["code"]) == 2:
        for language, title in category.get("title", {}).items():
            if names.get(language, category["code"]) == category["code"]:
                names[language] = title
    return names


class Table:
    """Names by language, kind and code, in the languages that the invoice has."""

    def __init__(self, languages: list[str]):
        self.languages = languages
        self.names: dict[str, dict[str, dict[str, str]]] = {}

    def add(self, kind: str, code: str, names: dict[str, str]) -> bool:
        """Whether the names are there now, or were."""
        known = [language for language in self.languages if language in names]
        if not known:
            return True
        given = {language: names[language] for language in known}
        # Their own language is better than the bare code.
        given.setdefault("en", given[known[0]])
        if any(self.get(language, kind, code, name) != name for language, name in given.items()):
            return False
        for language, name in given.items():
            if language == "en" or name != given["en"]:
                self.names.setdefault(language, {}).setdefault(kind, {})[code] = name
        return True

    def get(self, language: str, kind: str, code: str, default: str) -> str:
        return self.names.get(language, {}).get(kind, {}).get(code, default)


def written(path: Path, table: dict) -> None:
    path.write_text(json.dumps(table, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gobl", type=Path, help="a clone of github.com/invopop/gobl, with its history")
    clone = parser.parse_args().gobl
    translated = json.loads(LANGUAGES.read_text())
    by_hand = translated["en"]["invoice"]
    codes = Table(list(translated))
    extensions = Table(list(translated))
    regimes: dict[str, Table] = {}
    withheld = set()

    def add(kind: str, code: str, names: dict[str, str], country: str | None) -> None:
        readable = {language: name for language, name in names.items() if language in translated}
        same_as_code = all(name == code for name in readable.values())
        if code in by_hand[kind] or code in by_hand["titles"] or same_as_code:
            return
        if not codes.add(kind, code, readable) and country is not None:
            regimes.setdefault(country, Table(codes.languages)).add(kind, code, readable)

    # Mexico first: unlike Colombia, it has English names for what both have.
    for definition in sorted(definitions(clone), key=lambda definition: definition.get("country") != "MX"):
        country = definition.get("country")
        for category in definition.get("categories") or []:
            add("taxes", category["code"], tax_name(category), country)
            if category.get("retained") and re.search("rete|reti", json.dumps(category["name"]), re.IGNORECASE):
                withheld.add(category["code"])
        for identity in definition.get("identities") or []:
            add("identities", identity.get("key") or identity["code"], identity["name"], country)
        for inbox in definition.get("inboxes") or []:
            codes.add("inboxes", inbox["key"], inbox["name"])
        for tag in [tag for tags in definition.get("tags") or [] for tag in tags.get("list") or []]:
            if tag["key"] not in UNPRINTED_TAGS:
                add("tags", tag["key"], tag["name"], country)
        for extension in definition.get("extensions") or []:
            if EXEMPTIONS.search(extension["key"]) or extension["key"] in PARTIES:
                for value in extension.get("values") or []:
                    if value["name"].get("en") in REPEATED:
                        continue
                    extensions.add(extension["key"], value["code"], value["name"])
    for kind, names_of in [("stamps", STAMPS), ("means", MEANS), ("complements", COMPLEMENTS), ("extensions", PARTIES)]:
        for code, names in names_of.items():
            codes.add(kind, code, names)
    written(
        INVOICE / "codes.json",
        codes.names
        | {
            "regimes": {country: table.names for country, table in regimes.items()},
            "withheld": sorted(withheld),
            "unece": units(clone),
        },
    )
    written(INVOICE / "extensions.json", extensions.names)


if __name__ == "__main__":
    main()
