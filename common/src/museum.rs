//! The museum: known bugs of peers that tests can bring back, to show that they would be caught.
//!
//! Each room keeps its own list of names, an enum that is an [`Exhibit`], and asks [`active`] where the bug would sit. Without feature
//! `museum` every question is a constant `false` and vanishes from the code; no build that ships has the feature.

/// A list of bugs that can be brought back.
pub trait Exhibit: Copy + Eq + 'static {}

#[cfg(feature = "museum")]
mod switch {
    use super::Exhibit;
    use std::any::Any;
    use std::cell::RefCell;
    use std::marker::PhantomData;

    thread_local! {
        static ACTIVE: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
    }

    /// Whether the bug is back, on this thread.
    #[must_use]
    pub fn active<E: Exhibit>(bug: E) -> bool {
        ACTIVE.with_borrow(|back| back.as_ref().and_then(|back| back.downcast_ref()) == Some(&bug))
    }

    /// A bug is back for as long as this lives.
    #[must_use]
    #[derive(Debug)]
    pub struct Back(PhantomData<*const ()>);

    impl Drop for Back {
        fn drop(&mut self) {
            ACTIVE.set(None);
        }
    }

    /// Brings a bug back on this thread. One at a time, of whatever list.
    pub fn bring_back<E: Exhibit>(bug: E) -> Back {
        ACTIVE.set(Some(Box::new(bug)));
        Back(PhantomData)
    }
}

#[cfg(feature = "museum")]
pub use switch::{Back, active, bring_back};

/// Whether the bug is back: never in this build.
#[cfg(not(feature = "museum"))]
#[must_use]
pub const fn active<E: Exhibit>(_: E) -> bool {
    false
}

#[cfg(all(test, feature = "museum"))]
mod tests {
    use super::*;
    use crate::tasks::{OnFailure, TaskGroup};

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Mine {
        First,
        Second,
    }
    impl Exhibit for Mine {}

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Theirs {
        First,
    }
    impl Exhibit for Theirs {}

    #[test]
    fn one_bug_of_one_list_is_back_on_one_thread() {
        assert!(!active(Mine::First));
        let back = bring_back(Mine::First);
        assert!(active(Mine::First) && !active(Mine::Second) && !active(Theirs::First));
        let (tell, told) = std::sync::mpsc::channel();
        let elsewhere = move || tell.send(active(Mine::First)).unwrap_or(());
        TaskGroup::new().thread("elsewhere", OnFailure::Log, elsewhere);
        assert_eq!(told.recv(), Ok(false));
        drop(back);
        let back = bring_back(Theirs::First);
        assert!(active(Theirs::First) && !active(Mine::First));
        drop(back);
        assert!(!active(Theirs::First));
    }
}
