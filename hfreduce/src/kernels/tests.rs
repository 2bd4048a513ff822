//! Every instruction set against the scalar twin, bit for bit, over types, counts, orders and special values.

use super::{Level, Order, Sum};
use lampyris_comm::{DType, Memory};
use proptest::prelude::*;

const TYPES: [(DType, DType); 11] = [
    (DType::F32, DType::F32),
    (DType::F32, DType::Bf16),
    (DType::F32, DType::F16),
    (DType::F32, DType::Fp8E4m3),
    (DType::Bf16, DType::Bf16),
    (DType::Bf16, DType::F32),
    (DType::F16, DType::F16),
    (DType::F16, DType::F32),
    (DType::Fp8E4m3, DType::F32),
    (DType::Fp8E4m3, DType::Bf16),
    (DType::Fp8E4m3, DType::Fp8E4m3),
];

fn run(level: Level, inputs: &mut [Vec<u8>], types: (DType, DType), order: Order) -> Vec<Vec<u8>> {
    let elements = inputs[0].len() / types.0.bytes();
    let mut outputs = vec![vec![0xa5u8; elements * types.1.bytes() + 1]; 2];
    let from: Vec<Memory> = inputs.iter_mut().map(|input| Memory::of(input)).collect();
    // The second output starts at an odd address: nothing may assume alignment.
    let to: Vec<Memory> = outputs
        .iter_mut()
        .enumerate()
        .map(|(i, output)| {
            let length = output.len() - 1;
            Memory::of(output).slice(i..i + length)
        })
        .collect();
    let sum = Sum { inputs: &from, outputs: &to, input: types.0, output: types.1, order };
    // SAFETY: the vectors are alive and nobody else uses them; the level is available.
    unsafe { sum.run(level) };
    outputs.iter().enumerate().map(|(i, o)| o[i..i + o.len() - 1].to_vec()).collect()
}

/// Bytes that are all kinds of numbers in every type: random, and denormals, infinities, NaN, zeros.
fn bytes(elements: usize, dtype: DType) -> impl Strategy<Value = Vec<u8>> {
    let special = prop_oneof![
        4 => any::<u32>(),
        1 => Just(0x7fc0_1234u32),
        1 => Just(0xff80_0000),
        1 => Just(0x0000_0001),
        1 => Just(0x0040_0000),
        1 => Just(0x8000_0000),
        1 => Just(0x7f7f_ffff),
        1 => Just(0x3f80_8000),
    ];
    let size = dtype.bytes();
    prop::collection::vec(special, elements).prop_map(move |words| {
        words.iter().flat_map(|word| word.to_le_bytes()[4 - size..].to_vec()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn all_levels_give_the_bits_of_the_scalar_twin(
        (types, mut inputs, tree) in (0..TYPES.len(), 1usize..=17, 0usize..80, any::<bool>())
            .prop_flat_map(|(types, count, elements, tree)| {
                let types = TYPES[types];
                let inputs = prop::collection::vec(bytes(elements, types.0), count);
                (Just(types), inputs, Just(tree))
            })
    ) {
        let fits = inputs.len().is_power_of_two() && inputs.len() <= super::MAX_TREE;
        let order = if tree && fits { Order::Tree } else { Order::Fold };
        let expected = run(Level::Scalar, &mut inputs, types, order);
        prop_assert_eq!(&expected[0], &expected[1]);
        for level in Level::ALL.into_iter().filter(|level| level.available()) {
            let got = run(level, &mut inputs, types, order);
            prop_assert_eq!(&got, &expected, "{:?} {:?} {:?}", level, types, order);
        }
    }
}

#[test]
fn sums_in_place() {
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        let mut a: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let mut b: Vec<f32> = (0..100).map(|i| 2.0 * i as f32).collect();
        let both = [Memory::of(&mut a), Memory::of(&mut b)];
        let sum = Sum {
            inputs: &both,
            outputs: &both,
            input: DType::F32,
            output: DType::F32,
            order: Order::Tree,
        };
        // SAFETY: as above.
        unsafe { sum.run(level) };
        let expected: Vec<f32> = (0..100).map(|i| 3.0 * i as f32).collect();
        assert_eq!((a, b), (expected.clone(), expected));
    }
}

#[test]
fn the_tree_differs_from_the_fold() {
    let values = [1e8f32, 1.0, -1e8, 1.0];
    let mut inputs: Vec<Vec<u8>> = values.iter().map(|v| v.to_le_bytes().repeat(40)).collect();
    let types = (DType::F32, DType::F32);
    let first =
        |outputs: Vec<Vec<u8>>| f32::from_le_bytes(outputs[0][..4].try_into().expect("four bytes"));
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        assert_eq!(first(run(level, &mut inputs, types, Order::Fold)), 1.0);
        assert_eq!(first(run(level, &mut inputs, types, Order::Tree)), 0.0);
    }
}
