//! A slot's bytes decode to a page or are an error; a page comes back as it was.

use ghostmem_codec::{AnyCodec, Codec, PAGE_SIZE, decode, fill, fill_pattern};

pub(crate) fn run(data: &[u8]) {
    let [id, bytes @ ..] = data else { return };
    let mut page = [0x5a; PAGE_SIZE];
    let _refused = decode(*id, bytes, &mut page);

    // The input as a page, repeated to its end.
    let mut page = [0; PAGE_SIZE];
    for (to, &from) in page.iter_mut().zip(bytes.iter().cycle()) {
        *to = from;
    }
    for codec in AnyCodec::ALL {
        let mut state = vec![0; codec.state_words()];
        let mut out = [0; PAGE_SIZE];
        if let Some(len) = codec.compress(&mut state, &page, &mut out) {
            let mut back = [0; PAGE_SIZE];
            let decoded = decode(codec.encoding().id(), &out[..len], &mut back);
            assert_eq!(decoded, Ok(()), "what was compressed decodes");
            assert!(back == page, "a page comes back as it was");
        }
    }
    if let Some(pattern) = fill_pattern(&page) {
        let mut back = [0; PAGE_SIZE];
        fill(pattern, &mut back);
        assert!(back == page, "a pattern is the whole page");
    }
}
