//! The data path's internal modules are not public: safe code could break the rules of the data
//! path with their functions.

/// Reads the declarations in the sources. A compiler cannot be asked, because all tests here are
/// built with the feature.
#[test]
fn the_engine_room_is_public_only_with_a_feature() {
    let (lib, engine) = (include_str!("../src/lib.rs"), include_str!("../src/engine/mod.rs"));
    let rooms = [
        (lib, "pub mod pipeline;"),
        (lib, "pub use sys::{buffer, handoff, pages, ring, slab};"),
        (engine, "pub use session::sessions;"),
    ];
    for (source, public) in rooms {
        let hidden = format!("#[cfg(feature = \"internals\")]\n#[doc(hidden)]\n{public}");
        assert!(source.contains(&hidden), "'{public}' is shown to everybody");
        assert_eq!(source.matches(public).count(), 1, "'{public}' stands there twice");
    }
    assert!(lib.contains("\nmod sys;") && engine.contains("\npub(crate) mod session;"));
}
