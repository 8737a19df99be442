//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package seal

import (
	"bytes"
	"reflect"
	"runtime"
	"testing"
	"unsafe"
)

// TestWipedKeyIsErased: the garbage collector overwrites the expanded keys that Wipe can only drop.
func TestWipedKeyIsErased(t *testing.T) {
	for what, was := range dropped(t) {
		runtime.GC()
		if now := was.now(); bytes.Contains(now, was.bytes) {
			t.Errorf("%s: %d bytes are left in memory", what, len(was.bytes))
		}
	}
}

// memory is what was somewhere.
type memory struct {
	addr  uintptr
	bytes []byte
}

// dropped uses and wipes a key, and returns where the ciphers were that it had.
//
//go:noinline
func dropped(t *testing.T) map[string]memory {
	k, err := New(&[32]byte{1, 2, 3}, [16]byte{4})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Seal(nil, []byte("data"), nil); err != nil {
		t.Fatal(err)
	}
	ms := map[string]memory{"sealing key": locate(reflect.ValueOf(k.block)), "epoch": locate(reflect.ValueOf(k.epoch.Load().aead).Field(0))}
	k.Wipe()
	return ms
}

// locate finds and copies what a pointer points to.
func locate(v reflect.Value) memory {
	m := memory{addr: v.Pointer(), bytes: make([]byte, v.Type().Elem().Size())}
	copy(m.bytes, m.now())
	return m
}

// now returns a copy of what is there. Freed memory stays mapped.
//
//go:nocheckptr
func (m memory) now() []byte {
	return bytes.Clone(unsafe.Slice(*(**byte)(unsafe.Pointer(&m.addr)), len(m.bytes)))
}
