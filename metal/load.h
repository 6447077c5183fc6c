// Reads and writes: vectors where the layout allows, and inputs that may be absent.
//
// Everything is in device memory: the launcher never binds an array of fewer than 8
// elements, which MLX would put into constant memory.
#ifndef MLX_GLU_LOAD_H
#define MLX_GLU_LOAD_H

namespace mlx_glu {

// An input that is not there reads as 0.
struct None {};

inline float at(None, ulong) { return 0.0f; }

template <typename T>
float at(const device T* p, ulong i) {
  return float(p[i]);
}

// A vector V of words in one load. Codes of a lane start at multiples of its size.
template <typename V>
V read_vector(const device uint* p) {
  return *(const device V*)p;
}

// Four elements in one load, aligned as one: an array may start anywhere in its buffer.
template <typename T>
struct Four {
  T v[4];
};

// n floats, four in a load where n is a multiple of 4.
template <int n, typename T>
void read_floats(const device T* p, thread float* out) {
  for (int i = 0; i < n; i += n % 4 ? 1 : 4) {
    if (n % 4) {
      out[i] = float(p[i]);
    } else {
      Four<T> four = *(const device Four<T>*)(p + i);
      for (int j = 0; j < 4; j++) {
        out[i + j] = float(four.v[j]);
      }
    }
  }
}

// n floats rounded to the elements of p, four in a store as in read_floats.
template <int n, typename T>
void write_floats(device T* p, const thread float* in) {
  for (int i = 0; i < n; i += n % 4 ? 1 : 4) {
    if (n % 4) {
      p[i] = T(in[i]);
    } else {
      *(device metal::vec<T, 4>*)(p + i) =
          metal::vec<T, 4>(T(in[i]), T(in[i + 1]), T(in[i + 2]), T(in[i + 3]));
    }
  }
}

// n words, two in a load where n is even.
template <int n>
void read_words(const device uint* p, thread uint* w) {
  for (int i = 0; i < n; i += n % 2 ? 1 : 2) {
    if (n % 2) {
      w[i] = p[i];
    } else {
      uint2 two = read_vector<uint2>(p + i);
      w[i] = two.x;
      w[i + 1] = two.y;
    }
  }
}

} // namespace mlx_glu

#endif
