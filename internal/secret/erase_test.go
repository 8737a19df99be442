//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package secret_test

import (
	"bytes"
	"runtime"
	runtimesecret "runtime/secret"
	"testing"
	"unsafe"

	"example.com/keyring/internal/secret"
)

// TestDoErases what f has allocated once nothing refers to it, and nothing else.
func TestDoErases(t *testing.T) {
	secret.Do(func() {
		if !runtimesecret.Enabled() {
			t.Error("f does not run in Go's Do")
		}
	})
	if runtimesecret.Enabled() {
		t.Error("it goes on after Do")
	}
	kept, dropped := fill()
	runtime.GC()
	if n := bytes.Count(kept, pattern); n != size/len(pattern) {
		t.Errorf("%d of %d are left of what is in use", n, size/len(pattern))
	}
	if n := bytes.Count(at(dropped), pattern); n > 0 {
		t.Errorf("%d of %d are left of what was dropped", n, size/len(pattern))
	}
}

const size = 64 << 10

var pattern = []byte{0xa5, 0x5a, 0xc3, 0x3c}

// fill returns memory from within Do, and the address of some that nothing refers to.
//
//go:noinline
func fill() (kept []byte, dropped uintptr) {
	secret.Do(func() {
		kept = bytes.Repeat(pattern, size/len(pattern))
		b := bytes.Repeat(pattern, size/len(pattern))
		dropped = uintptr(unsafe.Pointer(&b[0]))
	})
	return kept, dropped
}

// at returns a copy of memory that was freed. It stays mapped.
//
//go:nocheckptr
func at(addr uintptr) []byte {
	return bytes.Clone(unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), size))
}
