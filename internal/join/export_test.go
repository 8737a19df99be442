package join

// Proven reports whether a proof is the expected one.
var Proven = proven
