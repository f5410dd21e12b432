//! The page of all processes of one `ghostmem run --memory`.

use std::sync::OnceLock;

use ghostmem_os::descriptor;
use ghostmem_os::tree::Tree;

use crate::settings::Settings;
use crate::start;

static TREE: OnceLock<Option<Tree>> = OnceLock::new();

/// Looks for the page, if there is to be one. Called once, at start, before the program can
/// have closed its descriptor.
pub(crate) fn find(settings: &Settings) {
    let _once = TREE.get_or_init(|| {
        let key = settings.tree_key?;
        let tree = Tree::open(settings.tree_file, key, settings.reporter)?;
        // A thread of the program before may have spoken after `before_exec`.
        tree.note_caller();
        Some(tree)
    });
}

/// The page, where there is one.
pub(crate) fn page() -> Option<&'static Tree> {
    TREE.get()?.as_ref()
}

/// The calling process is about to execute a program, which may be none of ours: the
/// others are to count it all the same. Where it takes us, or what it starts may
/// (`passed`), it gets the descriptor.
pub(crate) fn before_exec(passed: bool) {
    if let Some(tree) = page()
        && let Some(settings) = start::settings()
    {
        tree.note_caller();
        descriptor::pass_to_programs(settings.tree_file, passed);
    }
}
