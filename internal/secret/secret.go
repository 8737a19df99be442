// Package secret runs what works with key bytes so that no copy of them outlasts it, where Go can do that.
//
// Do is Do of runtime/secret in a build with GOEXPERIMENT=runtimesecret, on linux/amd64 and linux/arm64. There
// registers and stack that f has used are overwritten before Do returns, and what f has allocated is overwritten when
// the garbage collector finds that nothing refers to it any more: for a key that is in use, at a collection after it was dropped.
//
// In any other build, and on any other platform, Do calls f and does nothing else. Nothing may rely on more: key bytes that
// this module owns are overwritten by those who own them, in every build.
//
// In no build does Do reach global variables, what f has written into memory that was allocated before, or goroutines
// that f starts: none are started here but those in which argon2 fills its memory. A panic of f comes out of Do. Each allocation in f is tracked until it is overwritten, so no
// call that is made once a message, and nothing that grows slices without a bound, belongs in it.
package secret
