// What the library was built for, as text in the file: detnas_d2/ops/extension.py reads it before it
// loads the library, which may be impossible, or crash, with another torch.

#ifdef DETNAS_D2_BUILT_FOR
extern "C" __attribute__((used, visibility("default"))) const char detnas_d2_built_for[] =
    "detnas_d2 built for " DETNAS_D2_BUILT_FOR "\n";
#endif
