package seal_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"

	"example.com/keyring/internal/seal"
	"pgregory.net/rapid"
)

var (
	testRoot = [32]byte{1, 2, 3}
	testID   = [16]byte{4, 5, 6}
)

func TestRoundTrip(t *testing.T) {
	key := randomKey(t)
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.SliceOf(rapid.Byte()).Draw(t, "prefix")
		plaintext := rapid.SliceOf(rapid.Byte()).Draw(t, "plaintext")
		aad := rapid.SliceOf(rapid.Byte()).Draw(t, "aad")
		room := rapid.IntRange(0, 200).Draw(t, "room") // sometimes enough, sometimes not

		dst := append(make([]byte, 0, len(prefix)+room), prefix...)
		sealed := must(key.Seal(dst, plaintext, aad))
		envelope, ok := bytes.CutPrefix(sealed, prefix)
		if !ok || len(envelope) != len(plaintext)+seal.Overhead {
			t.Fatalf("sealed %x after %x", sealed, prefix)
		}
		if id, ok := seal.KeyID(envelope); !ok || id != key.ID() {
			t.Fatalf("key ID %x, %v", id, ok)
		}
		dst = append(make([]byte, 0, len(prefix)+room), prefix...)
		opened := must(key.Open(dst, envelope, aad))
		if got, ok := bytes.CutPrefix(opened, prefix); !ok || !bytes.Equal(got, plaintext) {
			t.Fatalf("opened %x after %x", opened, prefix)
		}
	})
}

// TestNilIsEmpty: for plaintext and AAD there is no difference.
func TestNilIsEmpty(t *testing.T) {
	key := randomKey(t)
	for _, plaintext := range [][]byte{nil, {}} {
		for _, aad := range [][]byte{nil, {}} {
			envelope := must(key.Seal(nil, plaintext, aad))
			for _, other := range [][]byte{nil, {}} {
				if got, err := key.Open(nil, envelope, other); err != nil || len(got) != 0 {
					t.Errorf("got %x, %v", got, err)
				}
			}
		}
	}
}

// refuses fails the test unless two keys give the one opaque error: key, which may know the
// epoch, and a fresh one, which can't.
func refuses(t *testing.T, key *seal.Key, what string, envelope, aad []byte) {
	t.Helper()
	for _, k := range []*seal.Key{key, mustNew(t, testRoot, testID)} {
		if got, err := k.Open(nil, envelope, aad); err != seal.ErrOpen || got != nil {
			t.Errorf("%s: got %x, %v", what, got, err)
		}
	}
}

// TestOpenRefusesAllButTheCompleteCiphertext has every prefix, every flipped bit and every other thing
// that is not what was sealed.
func TestOpenRefusesAllButTheCompleteCiphertext(t *testing.T) {
	key, aad := mustNew(t, testRoot, testID), []byte("tenant/4711")
	envelope := must(key.Seal(nil, []byte("thirty-three bytes, two blocks +1"), aad))
	for i := range envelope {
		refuses(t, key, "prefix", envelope[:i], aad)
	}
	for i := range len(envelope) * 8 {
		flipped := bytes.Clone(envelope)
		flipped[i/8] ^= 1 << (i % 8)
		refuses(t, key, "flipped bit", flipped, aad)
	}
	refuses(t, key, "longer", append(bytes.Clone(envelope), 0), aad)
	refuses(t, key, "garbage", bytes.Repeat([]byte{1}, 100), aad)
	refuses(t, key, "no AAD", envelope, nil)
	refuses(t, key, "AAD cut short", envelope, aad[:5])
	refuses(t, key, "other AAD", envelope, []byte("tenant/4712"))

	otherRoot := mustNew(t, [32]byte{3, 2, 1}, testID)
	refuses(t, key, "same ID, other root", must(otherRoot.Seal(nil, nil, aad)), aad)
	otherID := mustNew(t, testRoot, [16]byte{6, 5, 4})
	envelope = must(otherID.Seal(nil, nil, aad))
	refuses(t, key, "same root, other ID", envelope, aad)
	copy(envelope[1:], testID[:])
	refuses(t, key, "same root, other ID, relabelled", envelope, aad)
}

// TestFailedOpenLeavesNoPlaintext: where plaintext would have been there are zeros, and
// around it nothing has changed.
func TestFailedOpenLeavesNoPlaintext(t *testing.T) {
	key, plaintext := mustNew(t, testRoot, testID), bytes.Repeat([]byte("secret"), 50)
	envelope := must(key.Seal(nil, plaintext, nil))
	envelope[len(envelope)-1] ^= 1
	for _, k := range []*seal.Key{key, mustNew(t, testRoot, testID)} {
		buf := bytes.Repeat([]byte{0xaa}, 10+len(plaintext)+10)
		if got, err := k.Open(buf[:10], envelope, nil); got != nil || err != seal.ErrOpen {
			t.Fatalf("got %x, %v", got, err)
		}
		want := bytes.Repeat([]byte{0xaa}, len(buf))
		clear(want[10 : 10+len(plaintext)])
		if !bytes.Equal(buf, want) {
			t.Errorf("dst is %x", buf)
		}
	}
}

// TestInPlaceIsOverlap: the envelope is longer than the plaintext, so there is no exact
// overlap that would do.
func TestInPlaceIsOverlap(t *testing.T) {
	key, buf := randomKey(t), make([]byte, 200)
	if got, err := key.Seal(buf[:0], buf[:100], nil); err != seal.ErrOverlap || got != nil {
		t.Errorf("Seal: %x, %v", got, err)
	}
	envelope := must(key.Seal(nil, buf, nil))
	if got, err := key.Open(envelope[:0], envelope, nil); err != seal.ErrOverlap || got != nil {
		t.Errorf("Open: %x, %v", got, err)
	}
}

// The overlap tests lay dst, text and AAD in one arena: dst in the middle, and one of the
// inputs at every offset while the other is out of the way. Then again with dst one byte
// short of the capacity, where the output goes to new memory and nothing overlaps.
const (
	arenaLen = 400
	dstFrom  = 160
	dstTo    = 165
)

// meets reports whether n bytes at offset share one with the out bytes after dst.
func meets(offset, n, out int) bool {
	return max(offset, dstTo) < min(offset+n, dstTo+out)
}

// checkOverlap calls with a dst that has room for out bytes in the arena or, if short, for
// one less. The error must be ErrOverlap exactly if overlap says so, with nothing
// written. Otherwise nothing is written but the output.
func checkOverlap(t *testing.T, arena []byte, out int, overlap bool, call func(dst []byte) error) {
	t.Helper()
	before := bytes.Clone(arena)
	for _, room := range []int{out, out - 1} {
		overlap := overlap && room == out
		err := call(arena[dstFrom : dstTo : dstTo+room])
		if err != nil && err != seal.ErrOverlap || overlap != (err == seal.ErrOverlap) {
			t.Fatalf("overlap %v, got %v", overlap, err)
		}
		if !overlap && room == out {
			copy(arena[dstTo:dstTo+out], before[dstTo:])
		}
		if !bytes.Equal(arena, before) {
			t.Fatalf("overlap %v, room %d of %d: written out of place", overlap, room, out)
		}
	}
}

func TestSealOverlap(t *testing.T) {
	const n, out = 7, 7 + seal.Overhead
	key, arena, apart := randomKey(t), make([]byte, arenaLen), make([]byte, n)
	for i := range arenaLen - n {
		input, overlap := arena[i:i+n], meets(i, n, out)
		checkOverlap(t, arena, out, overlap, func(dst []byte) error {
			_, err := key.Seal(dst, input, apart)
			return err
		})
		checkOverlap(t, arena, out, overlap, func(dst []byte) error {
			_, err := key.Seal(dst, apart, input)
			return err
		})
	}
}

func TestOpenOverlap(t *testing.T) {
	const n = 7
	key, apart := randomKey(t), make([]byte, n)
	envelope := must(key.Seal(nil, make([]byte, n), apart))
	for i := range arenaLen - len(envelope) {
		arena := make([]byte, arenaLen)
		aad := arena[i : i+n]
		checkOverlap(t, arena, n, meets(i, n, n), func(dst []byte) error {
			_, err := key.Open(dst, envelope, aad)
			return err
		})
		input := arena[i : i+len(envelope)]
		copy(input, envelope)
		checkOverlap(t, arena, n, meets(i, len(envelope), n), func(dst []byte) error {
			_, err := key.Open(dst, input, apart)
			return err
		})
	}
}

// TestNoAllocations: with a caller's buffer, for Seal, and for Open under the key's own epoch
// and under another server's that it has met.
func TestNoAllocations(t *testing.T) {
	here, there := mustNew(t, testRoot, testID), mustNew(t, testRoot, testID)
	plaintext, aad := make([]byte, 1000), []byte("tenant/4711")
	sealed, opened := make([]byte, 0, 1000+seal.Overhead), make([]byte, 0, 1000)
	own := must(here.Seal(nil, plaintext, aad))
	foreign := must(there.Seal(nil, plaintext, aad))
	must(here.Open(nil, foreign, aad))
	for name, call := range map[string]func(){
		"Seal":       func() { must(here.Seal(sealed, plaintext, aad)) },
		"Open own":   func() { must(here.Open(opened, own, aad)) },
		"Open other": func() { must(here.Open(opened, foreign, aad)) },
	} {
		if n := testing.AllocsPerRun(100, call); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestKeyID(t *testing.T) {
	envelope := must(mustNew(t, testRoot, testID).Seal(nil, nil, nil))
	if id, ok := seal.KeyID(envelope); !ok || id != testID {
		t.Errorf("got %x, %v", id, ok)
	}
	for i := range envelope {
		if id, ok := seal.KeyID(envelope[:i]); ok || id != [16]byte{} {
			t.Errorf("%d bytes: %x, %v", i, id, ok)
		}
	}
	for _, version := range []byte{0, 2, 255} {
		envelope[0] = version
		if id, ok := seal.KeyID(envelope); ok || id != [16]byte{} {
			t.Errorf("version %d: %x, %v", version, id, ok)
		}
	}
}

// TestFIPS140Only runs itself again in a process under GODEBUG=fips140=only.
func TestFIPS140Only(t *testing.T) {
	if fips140.Enforced() {
		checkFIPS(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFIPS140Only$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "under fips140=only") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// checkFIPS has what the package does, epochs that must be derived for opening included.
func checkFIPS(t *testing.T) {
	block := must(aes.NewCipher(make([]byte, 32)))
	if _, err := cipher.NewGCM(block); err == nil {
		t.Fatal("GCM with a caller's nonces is allowed: this is not the mode")
	}
	here, there := mustNew(t, testRoot, testID), mustNew(t, testRoot, testID)
	envelope := must(here.Seal(nil, []byte("approved"), nil))
	for _, key := range []*seal.Key{here, there, there} {
		if got, err := key.Open(nil, envelope, nil); err != nil || string(got) != "approved" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	checkVectors(t)
	t.Log("under fips140=only")
}

// FuzzOpen holds Open to the second implementation: the same verdict, the same plaintext.
func FuzzOpen(f *testing.F) {
	key := must(seal.New(&testRoot, testID))
	nonce := []byte("ABCDEFGHIJKLMNOPQRSTUVWX")
	f.Add([]byte{}, []byte{})
	f.Add(make([]byte, seal.Overhead), []byte("aad"))
	f.Add(sealAside(testRoot[:], testID[:], nonce, nil, nil), []byte{})
	f.Add(sealAside(testRoot[:], testID[:], nonce, []byte("plaintext"), []byte("aad")), []byte("aad"))
	f.Add(must(key.Seal(nil, []byte("own epoch"), nil)), []byte{})
	f.Fuzz(func(t *testing.T, envelope, aad []byte) {
		got, err := key.Open(nil, envelope, aad)
		want, wantErr := openAside(testRoot[:], testID[:], envelope, aad)
		if (err == nil) != (wantErr == nil) || !bytes.Equal(got, want) {
			t.Errorf("got %x, %v, want %x, %v", got, err, want, wantErr)
		}
		if err != nil && (err != seal.ErrOpen || got != nil) {
			t.Errorf("got %x, %v", got, err)
		}
	})
}
