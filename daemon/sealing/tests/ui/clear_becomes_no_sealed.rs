use device::Sealed;
use sealing::Clear;

fn by_conversion(clear: Clear) -> Sealed {
    clear.into()
}

fn by_declaration(clear: Clear) -> Sealed {
    Sealed::from_cipher(clear, Vec::new())
}

fn by_taking_it_apart(clear: Clear) -> Sealed {
    Sealed::from_cipher(clear.0, Vec::new())
}

fn main() {
    let _ = (by_conversion, by_declaration, by_taking_it_apart);
}
