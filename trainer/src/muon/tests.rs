use super::*;
use crate::sampling::uniform;
use tch::Kind;

/// Row-major, fp64.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Matrix {
        let at = |i: usize| value(i / columns, i % columns);
        Matrix { rows, columns, values: (0..rows * columns).map(at).collect() }
    }

    fn random(rows: usize, columns: usize, seed: u64) -> Matrix {
        let draw = |i: usize, j: usize| uniform(seed, (i * columns + j) as u64) - 0.5;
        // What fp32 can hold.
        Matrix::new(rows, columns, |i, j| f64::from(draw(i, j) as f32))
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.columns + j]
    }

    fn map(&self, of: impl Fn(f64) -> f64) -> Matrix {
        Matrix::new(self.rows, self.columns, |i, j| of(self.at(i, j)))
    }

    fn plus(&self, other: &Matrix) -> Matrix {
        Matrix::new(self.rows, self.columns, |i, j| self.at(i, j) + other.at(i, j))
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let sum = |i, j| (0..self.columns).map(|k| self.at(i, k) * other.at(k, j)).sum();
        Matrix::new(self.rows, other.columns, sum)
    }

    fn transposed(&self) -> Matrix {
        Matrix::new(self.columns, self.rows, |i, j| self.at(j, i))
    }

    fn rows(&self, first: usize, rows: usize) -> Matrix {
        Matrix::new(rows, self.columns, |i, j| self.at(first + i, j))
    }

    fn tensor(&self) -> Tensor {
        let size = [dim(self.rows), dim(self.columns)];
        Tensor::from_slice(&self.values).to_kind(Kind::Float).view(size)
    }

    /// max |a - b| / max |b| with the values of `found`.
    fn error_of(&self, found: &Tensor) -> f64 {
        let found = Vec::<f64>::try_from(found.to_kind(Kind::Double).flatten(0, -1)).unwrap();
        let most = self.values.iter().fold(0f64, |most, x| most.max(x.abs()));
        let pairs = found.iter().zip(&self.values);
        pairs.fold(0f64, |worst, (a, b)| worst.max((a - b).abs())) / most
    }
}

/// The published loop: always on the wide orientation, a X + (b A + c A A) X.
fn published(matrix: &Matrix) -> Matrix {
    let tall = matrix.rows > matrix.columns;
    let matrix = if tall { matrix.transposed() } else { matrix.clone() };
    let norm = matrix.values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x = matrix.map(|x| x / (norm + 1e-7));
    for _ in 0..5 {
        let a = x.times(&x.transposed());
        let b = a.map(|x| x * -4.7750).plus(&a.times(&a).map(|x| x * 2.0315));
        x = x.map(|x| x * 3.4445).plus(&b.times(&x));
    }
    if tall { x.transposed() } else { x }
}

const ARGS: Muon = Muon { lr: 0.02, momentum: 0.95, weight_decay: 0.1, grad_scale: 0.7 };

/// Two steps on weight and momentum, part by part, in fp64.
fn twin(weight: &mut Matrix, momentum: &mut Matrix, gradient: &Matrix, parts: &[Part]) {
    let gradient = gradient.map(|x| x * ARGS.grad_scale);
    *momentum = momentum.map(|x| x * ARGS.momentum).plus(&gradient);
    let ahead = momentum.map(|x| x * ARGS.momentum).plus(&gradient);
    for part in parts {
        let longer = part.rows.max(weight.columns) as f64;
        let update = published(&ahead.rows(part.first_row, part.rows));
        for i in 0..part.rows {
            for j in 0..weight.columns {
                let at = (part.first_row + i) * weight.columns + j;
                weight.values[at] *= 1.0 - ARGS.lr * ARGS.weight_decay;
                weight.values[at] -= ARGS.lr * 0.2 * longer.sqrt() * update.at(i, j);
            }
        }
    }
}

fn parts(rows: &[usize]) -> Vec<Part> {
    let mut first_row = 0;
    let part = |&rows: &usize| {
        first_row += rows;
        Part { hf_name: String::new(), first_row: first_row - rows, rows }
    };
    rows.iter().map(part).collect()
}

/// Tall, wide, square, one row, and stacked matrices, each with its own shape.
#[test]
fn steps_are_those_of_the_fp64_twin() {
    for (rows, columns) in
        [(&[48][..], 20), (&[20], 48), (&[32], 32), (&[1], 24), (&[24, 8, 8], 16), (&[40, 40], 32)]
    {
        let parts = parts(rows);
        let all = rows.iter().sum();
        let mut weight = Matrix::random(all, columns, 1);
        let mut momentum = Matrix::new(all, columns, |_, _| 0.0);
        let (mut found, mut moving) = (weight.tensor(), momentum.tensor());
        let before = weight.clone();
        for seed in 2..4 {
            let gradient = Matrix::random(all, columns, seed);
            twin(&mut weight, &mut momentum, &gradient, &parts);
            ARGS.step([&mut found, &mut moving], &gradient.tensor(), &parts).unwrap();
        }
        assert!(momentum.error_of(&moving) < 1e-6, "{rows:?} {columns}");
        // What moved, not what the weights were.
        let moved = weight.plus(&before.map(|x| -x));
        let error = moved.error_of(&(found - before.tensor()));
        assert!(error < 1e-4, "{rows:?} {columns}: {error}");
    }
}

/// Singular values near 1, so all columns of the shorter side are nearly orthogonal; zero stays zero.
#[test]
fn updates_are_nearly_orthogonal() {
    let found = orthogonalize(&Matrix::random(24, 96, 5).tensor()).unwrap();
    let squares = found.matmul(&found.tr()).diagonal(0, 0, 1);
    let (least, most) = (squares.min().double_value(&[]), squares.max().double_value(&[]));
    assert!(least > 0.4 && most < 1.6, "{least} {most}");
    let zero = orthogonalize(&Tensor::zeros([8, 4], (Kind::Float, tch::Device::Cpu))).unwrap();
    assert_eq!(zero.abs().max().double_value(&[]), 0.0);
}

/// Few rows and long sums are where threads would share a sum.
#[test]
fn the_number_of_threads_changes_no_bit() {
    for (rows, columns) in [(48, 2048), (2048, 64), (160, 96)] {
        let matrix = Matrix::random(rows, columns, 6).tensor();
        tch::set_num_threads(2);
        let two = orthogonalize(&matrix).unwrap();
        tch::set_num_threads(1);
        assert_eq!(orthogonalize(&matrix).unwrap(), two, "{rows} {columns}");
    }
}
