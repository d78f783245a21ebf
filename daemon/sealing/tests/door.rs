//! Proves at compile time that nothing clear goes past the door.

#[test]
fn clear_sectors_do_not_compile_into_a_device() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/sealed_reaches_a_device.rs");
    cases.compile_fail("tests/ui/clear_*.rs");
}
