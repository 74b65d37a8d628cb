//! Parses Cedar text into policies with their positions. Cedar's parser recurses without a guard (some 200
//! nested parentheses overflow a 2 MiB stack), so nesting is measured first; otherwise a text could crash the
//! process.

use std::borrow::Cow;

use cedar_policy_core::ast::{self, Policy};
use cedar_policy_core::parser;
use miette::Diagnostic;

use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::part::Part;
use crate::model::source::Source;

/// Maximum nesting of brackets in a text, and maximum number of conditionals in a policy.
pub const NESTING_MAX: usize = 64;
/// Maximum length of a policy, in bytes. A chain of operators is a tree as deep as the chain is long, and
/// that tree is walked by recursion before its depth is known.
pub const POLICY_BYTES_MAX: usize = 16 * 1024;
/// Maximum length of a schema, in bytes.
const SCHEMA_BYTES_MAX: usize = 1024 * 1024;
/// Maximum depth of an expression tree, far below the depth at which Cedar's evaluator runs out of stack.
pub const DEPTH_MAX: usize = 256;

/// Maximum number of policies of a bundle.
pub const POLICIES_MAX: usize = 200_000;

/// A policy and its position.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The policy, with the id that the parser gave it.
    pub policy: Policy,
    /// Offset and length in the file, in bytes.
    pub span: (usize, usize),
}

/// Parses a file's policies, at most `room`, and returns them in file order.
///
/// # Errors
/// The faults of the file.
pub fn parse(source: &Source, room: usize) -> Result<Vec<Placed>, Vec<Fault>> {
    if measure(source).map_err(|fault| vec![fault])? > room {
        let message = format!("the bundle has more than {POLICIES_MAX} policies");
        return Err(vec![Fault::whole(Code::PolicyTooLarge, source, message)]);
    }
    let set = parser::parse_policyset(&with_cedar_times(&source.text))
        .map_err(|errors| faults(Code::PolicySyntax, source, &errors))?;
    if let Some(template) = set.templates().next() {
        let message = "is a template; templates are not supported: write one policy for each principal or resource";
        return Err(vec![Fault::new(Code::PolicyTemplate, source, span(template.loc()), message)]);
    }
    let mut placed: Vec<Placed> =
        set.policies().map(|policy| Placed { policy: policy.clone(), span: span(policy.loc()) }).collect();
    placed.sort_by_key(|placed| placed.span.0);
    let deep = placed.iter().filter(|placed| depth(&placed.policy) > DEPTH_MAX);
    let faults: Vec<Fault> = deep
        .map(|placed| {
            let condition = placed.policy.non_scope_constraints().and_then(|condition| condition.source_loc());
            let at = condition.map_or(placed.span, |loc| span(Some(loc)));
            Fault::new(Code::PolicyTooLarge, source, at, format!("has an expression deeper than {DEPTH_MAX}"))
                .help("write a long `||` of comparisons as a set and `contains`")
        })
        .collect();
    if faults.is_empty() { Ok(placed) } else { Err(faults) }
}

/// Returns a text in which times with the offset of RFC 3339 (`+01:00`) have that of Cedar (`+0100`). The text keeps
/// its length, so places stay valid.
fn with_cedar_times(text: &str) -> Cow<'_, str> {
    const CALL: &str = "datetime(\"";
    let mut changed = None;
    for (at, _) in text.match_indices(CALL) {
        let start = at + CALL.len();
        let Some(end) = text.part(start..).find('"').map(|length| start + length) else { break };
        if let Some(offset) = rfc3339_offset(text.part(start..end)) {
            let colon = start + offset + 3;
            let changed: &mut String = changed.get_or_insert_with(|| text.to_owned());
            // `:00"` becomes `00" `.
            changed.replace_range(colon..=end, &format!("{}\" ", text.part(colon + 1..end)));
        }
    }
    changed.map_or(Cow::Borrowed(text), Cow::Owned)
}

/// Returns where the offset of a time begins that has one with a colon.
pub(super) fn rfc3339_offset(time: &str) -> Option<usize> {
    let at = time.len().checked_sub(6)?;
    let offset = time.get(at..)?.as_bytes();
    let fits = |(index, byte): (usize, &u8)| match index {
        0 => matches!(byte, b'+' | b'-'),
        3 => *byte == b':',
        _ => byte.is_ascii_digit(),
    };
    (time.get(..at)?.contains('T') && offset.iter().enumerate().all(fits)).then_some(at)
}

/// Converts a diagnostic of Cedar into faults with Cedar's own message and help: one for the diagnostic and
/// one for each related diagnostic.
pub fn faults(code: Code, source: &Source, error: &dyn Diagnostic) -> Vec<Fault> {
    let mut all = vec![fault(code, source, error)];
    all.extend(error.related().into_iter().flatten().map(|related| fault(code, source, related)));
    all
}

fn fault(code: Code, source: &Source, error: &dyn Diagnostic) -> Fault {
    let at = error.labels().and_then(|mut labels| labels.next()).map_or((0, 0).into(), |label| *label.inner());
    let fault = Fault::new(code, source, at, error.to_string());
    match error.help() {
        Some(help) => fault.help(help.to_string()),
        None => fault,
    }
}

/// Returns where a parsed part stands in its file.
pub(super) fn span(loc: Option<&parser::Loc>) -> (usize, usize) {
    loc.map_or((0, 0), |loc| (loc.span.offset(), loc.span.len()))
}

/// Checks the length, nesting and number of conditionals of a Cedar policy or schema text, and returns the
/// number of its `;`, which is that of the policies. Brackets in strings and comments don't count.
///
/// # Errors
/// If the text exceeds a limit, such as [`NESTING_MAX`].
pub fn measure(source: &Source) -> Result<usize, Fault> {
    let types = source.file.ends_with(".cedarschema");
    let code = if types { Code::SchemaTooLarge } else { Code::PolicyTooLarge };
    let fault = |at, message: &str| Err(Fault::new(code, source, (at, 1), message));
    let bytes = source.text.as_bytes();
    // In a schema, `<` opens the type of a set's elements; in a policy it compares.
    let longest = if types { SCHEMA_BYTES_MAX } else { POLICY_BYTES_MAX };
    let (mut at, mut depth, mut conditionals, mut start, mut ends) = (0, 0_usize, 0, 0, 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'/') => at = end_of_line(bytes, at),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'<' if types => depth += 1,
            b'>' if types => depth = depth.saturating_sub(1),
            b';' if !types => (conditionals, start, ends) = (0, at, ends + 1),
            b'i' if is_word(bytes, at, b"if") => conditionals += 1,
            _ => {}
        }
        if at - start > longest {
            return fault(
                start,
                if types { "the schema is longer than 1 MiB" } else { "the policy is longer than 16 KiB" },
            );
        }
        if depth > NESTING_MAX {
            return fault(at, "is nested deeper than 64");
        }
        if conditionals > NESTING_MAX {
            return fault(at, "has more than 64 conditionals in one policy");
        }
        at += 1;
    }
    Ok(ends)
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at,
            _ => at += 1,
        }
    }
    at
}

fn end_of_line(bytes: &[u8], start: usize) -> usize {
    bytes.iter().skip(start).position(|&byte| byte == b'\n').map_or(bytes.len(), |length| start + length)
}

fn is_word(bytes: &[u8], at: usize, word: &[u8]) -> bool {
    let part_of_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    bytes.get(at..at + word.len()) == Some(word)
        && !part_of_name(at.checked_sub(1).and_then(|before| bytes.get(before)))
        && !part_of_name(bytes.get(at + word.len()))
}

/// Returns the depth of a policy's condition, measured without recursion.
fn depth(policy: &Policy) -> usize {
    let mut deepest = 0;
    let mut open: Vec<(&ast::Expr, usize)> =
        policy.non_scope_constraints().map(|expression| (expression, 1)).into_iter().collect();
    while let Some((expression, depth)) = open.pop() {
        deepest = deepest.max(depth);
        open.extend(children(expression).into_iter().map(|child| (child, depth + 1)));
    }
    deepest
}

/// Returns the direct subexpressions.
pub fn children(expression: &ast::Expr) -> Vec<&ast::Expr> {
    match expression.expr_kind() {
        ast::ExprKind::Lit(_) | ast::ExprKind::Var(_) | ast::ExprKind::Slot(_) | ast::ExprKind::Unknown(_) => vec![],
        ast::ExprKind::If { test_expr, then_expr, else_expr } => vec![test_expr, then_expr, else_expr],
        ast::ExprKind::And { left, right } | ast::ExprKind::Or { left, right } => vec![left, right],
        ast::ExprKind::UnaryApp { arg, .. } => vec![arg],
        ast::ExprKind::BinaryApp { arg1, arg2, .. } => vec![arg1, arg2],
        ast::ExprKind::ExtensionFunctionApp { args, .. } => args.iter().collect(),
        ast::ExprKind::GetAttr { expr, .. }
        | ast::ExprKind::HasAttr { expr, .. }
        | ast::ExprKind::ExtHasAttr { expr, .. }
        | ast::ExprKind::Like { expr, .. }
        | ast::ExprKind::Is { expr, .. } => vec![expr],
        ast::ExprKind::Set(items) => items.iter().collect(),
        ast::ExprKind::Record(members) => members.values().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<usize, String> {
        let source = Source::new("p.cedar", text);
        parse(&source, POLICIES_MAX).map(|placed| placed.len()).map_err(|faults| faults[0].line())
    }

    #[test]
    fn deep_texts_are_refused_before_cedar_reads_them() {
        for (open, close) in [("(", ")"), ("!(", ")"), ("[", "]")] {
            let text = format!(
                "permit (principal, action, resource) when {{ {}true{} }};",
                open.repeat(10_000),
                close.repeat(10_000)
            );
            assert!(read(&text).expect_err("refused").ends_with("is nested deeper than 64"));
        }
        let chain = "if true then true else ".repeat(2_000);
        let text = format!("permit (principal, action, resource) when {{ {chain}true }};");
        assert!(read(&text).expect_err("refused").ends_with("conditionals in one policy"));
        for chain in [" + 1".repeat(30_000), ".a".repeat(30_000), " && true".repeat(30_000), "!".repeat(30_000)] {
            let text = format!("permit (principal, action, resource) when {{ context.a{chain} }};");
            assert!(read(&text).expect_err("refused").ends_with("is longer than 16 KiB"));
        }
        let sum = format!("permit (principal, action, resource) when {{ context.a{} == 1 }};", " + 1".repeat(3000));
        assert!(read(&sum).expect_err("refused").contains("deeper than 256"));
    }

    #[test]
    fn more_policies_than_there_is_room_for_are_refused_before_cedar_reads_them() {
        // The second text is no policy, which only Cedar would notice.
        let source = Source::new("p.cedar", "permit (principal, action, resource);\n\";\" ;; // ;\n");
        let faults = parse(&source, 2).expect_err("three ends of policies");
        assert!(faults[0].line().ends_with("the bundle has more than 200000 policies"), "{}", faults[0].line());
        assert!(!parse(&source, 3).expect_err("not Cedar")[0].line().contains("more than"));
    }

    #[test]
    fn brackets_in_strings_and_comments_are_no_nesting() {
        let text =
            format!("// {0}\npermit (principal, action, resource) when {{ \"{0}\\\"\" == \"x\" }};", "(".repeat(100));
        assert_eq!(read(&text), Ok(1));
    }

    #[test]
    fn a_syntax_error_names_file_line_and_column() {
        assert!(
            read("permit (\n  principal,, action, resource);")
                .expect_err("refused")
                .starts_with("p.cedar:2:13: unexpected token")
        );
        assert!(
            read("permit (principal == ?principal, action, resource);").expect_err("refused").contains("is a template")
        );
    }
}
