// Normalised integers, packed into a uint.
#pragma once

namespace metal {

MSL_FN float4 unpack_unorm4x8_to_float(uint x) {
  return __msl_make<float4>(as_type<uchar4>(x)) / 255.0f;
}
MSL_FN float4 unpack_snorm4x8_to_float(uint x) {
  return max(__msl_make<float4>(as_type<char4>(x)) / 127.0f, -1.0f);
}
MSL_FN float2 unpack_unorm2x16_to_float(uint x) {
  return __msl_make<float2>(as_type<ushort2>(x)) / 65535.0f;
}
MSL_FN float2 unpack_snorm2x16_to_float(uint x) {
  return max(__msl_make<float2>(as_type<short2>(x)) / 32767.0f, -1.0f);
}
MSL_FN half4 unpack_unorm4x8_to_half(uint x) {
  return __msl_make<half4>(unpack_unorm4x8_to_float(x));
}
MSL_FN half4 unpack_snorm4x8_to_half(uint x) {
  return __msl_make<half4>(unpack_snorm4x8_to_float(x));
}
MSL_FN half2 unpack_unorm2x16_to_half(uint x) {
  return __msl_make<half2>(unpack_unorm2x16_to_float(x));
}
MSL_FN half2 unpack_snorm2x16_to_half(uint x) {
  return __msl_make<half2>(unpack_snorm2x16_to_float(x));
}

MSL_FN uint pack_float_to_unorm4x8(float4 x) {
  return as_type<uint>(__msl_make<uchar4>(rint(saturate(x) * 255.0f)));
}
MSL_FN uint pack_float_to_snorm4x8(float4 x) {
  return as_type<uint>(__msl_make<char4>(rint(clamp(x, -1.0f, 1.0f) * 127.0f)));
}
MSL_FN uint pack_float_to_unorm2x16(float2 x) {
  return as_type<uint>(__msl_make<ushort2>(rint(saturate(x) * 65535.0f)));
}
MSL_FN uint pack_float_to_snorm2x16(float2 x) {
  return as_type<uint>(__msl_make<short2>(rint(clamp(x, -1.0f, 1.0f) * 32767.0f)));
}
MSL_FN uint pack_half_to_unorm4x8(half4 x) {
  return pack_float_to_unorm4x8(__msl_make<float4>(x));
}
MSL_FN uint pack_half_to_snorm4x8(half4 x) {
  return pack_float_to_snorm4x8(__msl_make<float4>(x));
}
MSL_FN uint pack_half_to_unorm2x16(half2 x) {
  return pack_float_to_unorm2x16(__msl_make<float2>(x));
}
MSL_FN uint pack_half_to_snorm2x16(half2 x) {
  return pack_float_to_snorm2x16(__msl_make<float2>(x));
}

}  // namespace metal
