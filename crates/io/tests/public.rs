//! The engine room is not for others: from safe code its functions could break any rule of the data
//! path.

/// A compiler would have to be asked without the feature that all tests here are built with; the
/// declarations say it as well.
#[test]
fn the_engine_room_is_public_only_with_a_feature() {
    let (lib, engine) = (include_str!("../src/lib.rs"), include_str!("../src/engine/mod.rs"));
    let rooms = [
        (lib, "pub mod pipeline;"),
        (lib, "pub use sys::{buffer, pages, ring, slab};"),
        (engine, "pub use session::links;"),
    ];
    for (source, public) in rooms {
        let hidden = format!("#[cfg(feature = \"internals\")]\n#[doc(hidden)]\n{public}");
        assert!(source.contains(&hidden), "'{public}' is shown to everybody");
        assert_eq!(source.matches(public).count(), 1, "'{public}' stands there twice");
    }
    assert!(lib.contains("\nmod sys;") && engine.contains("\npub(crate) mod session;"));
}
