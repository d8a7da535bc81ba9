//! Lists of fonts: a family that is not there matters only if no other of its list is.
//!
//! Typst warns of each family that is missing, and does not say what else the list has. That stands in the
//! template: at the place of the warning, or where the variable that stands there is given its value.

use std::collections::BTreeSet;

use typst::World;
use typst::WorldExt;
use typst::diag::SourceDiagnostic;
use typst::ecow::EcoVec;
use typst::syntax::ast::{self, AstNode};
use typst::syntax::{SyntaxNode, parse_code};

use super::UNKNOWN_FONT;
use super::world::DocumentWorld;

/// The hint of a warning that is none in a document.
const ALTERNATIVE: &str = "another font of the list is there, and taken";

/// How many variables are followed, one after the other.
const MAX_DEPTH: usize = 4;

/// Leaves out warnings of families for which there is an alternative. A sample keeps them, with a hint. Of a list
/// there is one warning with all families that are missing.
pub(super) fn without_alternatives(
    world: &DocumentWorld,
    warnings: EcoVec<SourceDiagnostic>,
    is_sample: bool,
) -> EcoVec<SourceDiagnostic> {
    let mut kept: EcoVec<SourceDiagnostic> = EcoVec::new();
    for mut warning in warnings {
        if warning.message.starts_with(UNKNOWN_FONT) {
            let of_same_list =
                kept.make_mut().iter_mut().find(|it| it.span == warning.span && it.message.starts_with(UNKNOWN_FONT));
            if let (Some(first), Some((_, family))) = (of_same_list, warning.message.split_once(": ")) {
                first.message.push_str(", ");
                first.message.push_str(family);
                continue;
            }
            if has_alternative(world, &warning) {
                if !is_sample {
                    continue;
                }
                warning.hint(ALTERNATIVE);
            }
        }
        kept.push(warning);
    }
    kept
}

/// Whether there is another font of the list of this warning.
pub(super) fn is_alternative(warning: &SourceDiagnostic) -> bool {
    warning.hints.iter().any(|hint| hint.v == ALTERNATIVE)
}

fn has_alternative(world: &DocumentWorld, warning: &SourceDiagnostic) -> bool {
    let place = warning.span.id().zip(world.range(warning.span));
    let Some((source, range)) = place.and_then(|(id, range)| Some((world.source(id).ok()?, range))) else {
        return false;
    };
    let Some(text) = source.text().get(range) else { return false };
    let mut list = List::default();
    list.read(&parse_code(text));
    // Variables may have their values in any file.
    let other_sources = world.template_sources().map(typst::syntax::parse);
    let roots: Vec<SyntaxNode> = std::iter::once(source.root().clone()).chain(other_sources).collect();
    for _ in 0..MAX_DEPTH {
        let names = std::mem::take(&mut list.names);
        if names.is_empty() {
            break;
        }
        for root in &roots {
            list.read_values_of(root, &names);
        }
    }
    list.families.iter().any(|family| world.has_family(family))
}

/// What is known of a list of fonts.
#[derive(Default)]
struct List {
    /// The families, in lower case.
    families: BTreeSet<String>,
    /// The variables that other families come from.
    names: BTreeSet<String>,
}

impl List {
    /// Reads an expression: the texts in it are families, and its variables are others.
    fn read(&mut self, node: &SyntaxNode) {
        if let Some(text) = node.cast::<ast::Str>() {
            self.families.insert(text.get().to_lowercase().into());
        } else if let Some(access) = node.cast::<ast::FieldAccess>() {
            self.names.insert(access.field().as_str().to_owned());
        } else if let Some(name) = node.cast::<ast::Ident>() {
            self.names.insert(name.as_str().to_owned());
        } else if let Some(named) = node.cast::<ast::Named>() {
            // Of a family with options, as in `(name: "Inter", covers: "latin-in-cjk")`.
            if named.name().as_str() == "name" {
                self.read(named.expr().to_untyped());
            }
        } else {
            node.children().for_each(|child| self.read(child));
        }
    }

    /// Reads what variables, parameters and fields of these names are given as values.
    fn read_values_of(&mut self, node: &SyntaxNode, names: &BTreeSet<String>) {
        if let Some(binding) = node.cast::<ast::LetBinding>() {
            let is_named = binding.kind().bindings().iter().any(|name| names.contains(name.as_str()));
            if let Some(value) = binding.init().filter(|_| is_named) {
                self.read(value.to_untyped());
            }
        } else if let Some(named) = node.cast::<ast::Named>()
            && names.contains(named.name().as_str())
        {
            self.read(named.expr().to_untyped());
        }
        node.children().for_each(|child| self.read_values_of(child, names));
    }
}
