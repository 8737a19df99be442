package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha3"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// These tests need what the package does not export: the derivation, the count, the cache.

// xaesSeal is XAES-256-GCM around the derivation that the package uses.
func xaesSeal(t *testing.T, key, nonce, plaintext, aad []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	var mask [16]byte
	var kx [32]byte
	cmacMask(&mask, block)
	subkey(&kx, block, &mask, nonce[:n1Len])
	if block, err = aes.NewCipher(kx[:]); err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead.Seal(nil, nonce[n1Len:], plaintext, aad)
}

// TestC2SPVectors has the two vectors of c2sp.org/XAES-256-GCM. The first bit of L is
// 0 in one of them and 1 in the other.
func TestC2SPVectors(t *testing.T) {
	for _, v := range []struct {
		key            byte
		aad, want      string
		mask, kx, note string
	}{
		{
			key: 1, aad: "", note: "MSB(L) = 0",
			mask: "e531954aca063d5b8d9c47a47d4cc6f0",
			kx:   "c8612c9ed53fe43e8e005b828a1631a0bbcb6ab2f46514ec4f439fcfd0fa969b",
			want: "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271",
		},
		{
			key: 3, aad: "c2sp.org/XAES-256-GCM", note: "MSB(L) = 1",
			mask: "23810ec50edb99f374409466ed1f4b7b",
			kx:   "e9c621d4cdd9b11b00a6427ad7e559aeedd66b3857646677748f8ca796cb3fd8",
			want: "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
		},
	} {
		key, nonce := bytes.Repeat([]byte{v.key}, 32), []byte("ABCDEFGHIJKLMNOPQRSTUVWX")
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		var mask [16]byte
		var kx [32]byte
		cmacMask(&mask, block)
		subkey(&kx, block, &mask, nonce[:n1Len])
		if got := hex.EncodeToString(mask[:]); got != v.mask {
			t.Errorf("%s: K1 is %s, want %s", v.note, got, v.mask)
		}
		if got := hex.EncodeToString(kx[:]); got != v.kx {
			t.Errorf("%s: Kx is %s, want %s", v.note, got, v.kx)
		}
		got := xaesSeal(t, key, nonce, []byte("XAES-256-GCM"), []byte(v.aad))
		if hex.EncodeToString(got) != v.want {
			t.Errorf("%s: ciphertext is %x, want %s", v.note, got, v.want)
		}
	}
}

// TestC2SPAccumulated draws keys, nonces and messages from SHAKE128 and hashes what they
// seal to.
func TestC2SPAccumulated(t *testing.T) {
	for _, v := range []struct {
		iterations int
		want       string
	}{
		{10_000, "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"},
		{1_000_000, "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15"},
	} {
		source, sink := sha3.NewSHAKE128(), sha3.NewSHAKE128()
		read := func(n int) []byte {
			b := make([]byte, n)
			source.Read(b)
			return b
		}
		for range v.iterations {
			key, nonce := read(32), read(24)
			plaintext := read(int(read(1)[0]))
			aad := read(int(read(1)[0]))
			sink.Write(xaesSeal(t, key, nonce, plaintext, aad))
		}
		var sum [32]byte
		sink.Read(sum[:])
		if got := hex.EncodeToString(sum[:]); got != v.want {
			t.Errorf("%d iterations: got %s, want %s", v.iterations, got, v.want)
		}
	}
}

func testKey(t *testing.T) *Key {
	t.Helper()
	k, err := New(&[32]byte{31: 7}, [16]byte{15: 9})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustSeal(t *testing.T, k *Key, plaintext string) []byte {
	t.Helper()
	envelope, err := k.Seal(nil, []byte(plaintext), nil)
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

// checkOpens fails the test unless k opens envelope to want.
func checkOpens(t *testing.T, k *Key, envelope []byte, want string) {
	t.Helper()
	got, err := k.Open(nil, envelope, nil)
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

// TestSpentCountsOneInSixtyFiveThousand: only an N2 with two leading zero bytes counts, and
// it counts for 65,536.
func TestSpentCountsOneInSixtyFiveThousand(t *testing.T) {
	var e epoch
	for _, n2 := range [][]byte{{0, 1, 0}, {1, 0, 0}, {0, 128, 0}, {128, 0, 0}, {255, 255, 0}} {
		if e.spent(n2, 1000, 0) || e.sealed.Load() != 0 || e.blocks.Load() != 0 {
			t.Fatalf("N2 %x counts", n2)
		}
	}
	zeros := make([]byte, n2Len)
	for i := 1; i < epochMessages/sampled; i++ {
		if e.spent(zeros, 0, epochMessages) {
			t.Fatalf("spent after %d", i*sampled)
		}
	}
	if !e.spent(zeros, 0, epochMessages) {
		t.Error("not spent after 2^28")
	}
}

// TestEpochsEndAfterSoManyBytes: short messages by their share of the samples, long ones each by itself, so that none of
// them goes uncounted.
func TestEpochsEndAfterSoManyBytes(t *testing.T) {
	zeros, ones := make([]byte, n2Len), bytes.Repeat([]byte{1}, n2Len)
	for _, v := range []struct {
		n2         []byte
		size, want uint64 // bytes of a message, and messages in an epoch
	}{
		{zeros, 1 << 19, 1 << 13}, // each stands for 2^16 of 512 KiB
		{ones, 1 << 30, 1 << 18}, {zeros, 1 << 30, 1 << 18},
		{ones, MaxPlaintext, 1 << 12},
	} {
		if v.size > math.MaxInt {
			continue // no message is that long here
		}
		var e epoch
		n := uint64(1)
		for n <= v.want && !e.spent(v.n2, int(v.size), 1<<63) {
			n++
		}
		if n > v.want || n < v.want-v.want/100 {
			t.Errorf("an epoch has %d messages of %d bytes, want %d", n, v.size, v.want)
		}
	}
}

// TestSealTurnsEpoch seals until N1 has changed three times, as it does after about
// 65,536 messages each with the smallest limit.
func TestSealTurnsEpoch(t *testing.T) {
	k, other := testKey(t), testKey(t)
	k.limit = sampled
	var epochs [][]byte // the first envelope of each
	var sealed int
	buf := make([]byte, 0, Overhead)
	// A turn that does not come within 64 times its mean has a chance of e^-64.
	for ; len(epochs) < 4 && sealed < 64*3*sampled; sealed++ {
		envelope, err := k.Seal(buf, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(epochs); n == 0 || !bytes.Equal(epochs[n-1][:headerLen], envelope[:headerLen]) {
			epochs = append(epochs, bytes.Clone(envelope))
		}
	}
	if len(epochs) < 4 {
		t.Fatalf("%d epochs in %d messages", len(epochs), sealed)
	}
	if sealed < 100 { // a chance of 1e-9: three turns among as many messages
		t.Errorf("3 turns in %d messages", sealed)
	}
	for _, envelope := range epochs {
		checkOpens(t, k, envelope, "")
		checkOpens(t, other, envelope, "")
	}
}

// TestNextEpochDrawsOnce: of many that find the epoch spent, one draws N1.
func TestNextEpochDrawsOnce(t *testing.T) {
	k := testKey(t)
	mustSeal(t, k, "")
	old := k.epoch.Load()
	got := make([]*epoch, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i], _ = k.nextEpoch(old) })
	}
	wg.Wait()
	for _, e := range got {
		if e != k.epoch.Load() || e == old {
			t.Fatal("not the one next epoch")
		}
	}
	if bytes.Equal(old.header[prefixLen:], got[0].header[prefixLen:]) {
		t.Error("N1 is the same")
	}
}

// cached returns the number of epochs in k's cache.
func cached(k *Key) (n int) {
	for _, e := range k.cache.Load() {
		if e != nil {
			n++
		}
	}
	return n
}

// TestForgeryEntersNoCache: an N1 is remembered only after a tag under it has verified.
func TestForgeryEntersNoCache(t *testing.T) {
	k := testKey(t)
	genuine := mustSeal(t, testKey(t), "genuine")
	for i := range uint32(3 * cacheSize) {
		forged := bytes.Clone(genuine)
		binary.LittleEndian.PutUint32(forged[prefixLen:], i)
		if _, err := k.Open(nil, forged, nil); err != ErrOpen {
			t.Fatalf("got %v", err)
		}
	}
	if n := cached(k); n != 0 {
		t.Errorf("%d forged epochs in the cache", n)
	}
	checkOpens(t, k, genuine, "genuine")
	if n := cached(k); n != 1 {
		t.Errorf("%d epochs in the cache, want 1", n)
	}
}

// TestCacheIsBounded: more epochs than fit are all opened, the newest is always kept, and
// those that still fit stay.
func TestCacheIsBounded(t *testing.T) {
	k := testKey(t)
	var envelopes [][]byte
	for i := range 3 * cacheSize {
		envelope := mustSeal(t, testKey(t), "old leader")
		envelopes = append(envelopes, envelope)
		checkOpens(t, k, envelope, "old leader")
		if got, want := cached(k), min(i+1, cacheSize); got != want {
			t.Fatalf("%d epochs in the cache, want %d", got, want)
		}
		if k.cache.Load().find((*[headerLen]byte)(envelope)) == nil {
			t.Fatal("the newest is not in the cache")
		}
	}
	for _, envelope := range envelopes {
		checkOpens(t, k, envelope, "old leader")
	}
}

// TestCacheKeepsCollidingEpochs: N1s with the same first byte have the same slot, and the
// last slot is followed by the first.
func TestCacheKeepsCollidingEpochs(t *testing.T) {
	c := new(cache)
	var all []*epoch
	for i := range cacheSize {
		e := new(epoch)
		e.header[prefixLen], e.header[prefixLen+1] = 255, 250
		e.header[headerLen-2], e.header[headerLen-1] = byte(i>>8), byte(i)
		c = c.with(e)
		c = c.with(e) // twice is once
		all = append(all, e)
	}
	for _, e := range all {
		if c.find(&e.header) != e {
			t.Errorf("%x not found", e.header[prefixLen:])
		}
	}
	if c.find(&[headerLen]byte{prefixLen: 255, prefixLen + 1: 250, headerLen - 2: 255, headerLen - 1: 255}) != nil {
		t.Error("found what is not there")
	}
}

// TestEpochOfTheSealerNeedsNoCache: what a key seals itself, it opens without deriving anything.
func TestEpochOfTheSealerNeedsNoCache(t *testing.T) {
	k := testKey(t)
	checkOpens(t, k, mustSeal(t, k, "mine"), "mine")
	if n := cached(k); n != 0 {
		t.Errorf("%d epochs in the cache, want none", n)
	}
}

// TestSealedLen has the lengths that no test can allocate.
func TestSealedLen(t *testing.T) {
	// The limit as NIST SP 800-38D states it, 2^39-256 bits, if an int can.
	gcm := int(min(uint64(1<<39-256)/8, math.MaxInt-2*Overhead))
	is64 := uint64(gcm) == MaxPlaintext
	for _, v := range []struct {
		dst, plaintext int
		ok             bool
	}{
		{0, 0, true},
		{5, 1 << 20, true},
		{0, gcm, true},
		{0, gcm + 1, !is64},
		{0, math.MaxInt, false},
		{math.MaxInt - Overhead, 0, true},
		{math.MaxInt - Overhead, 1, false},
		{math.MaxInt - Overhead - gcm, gcm, true},
		{math.MaxInt - Overhead - gcm + 1, gcm, false},
		{math.MaxInt, math.MaxInt, false},
	} {
		n, ok := sealedLen(v.dst, v.plaintext)
		if ok != v.ok || ok && n != v.plaintext+Overhead {
			t.Errorf("sealedLen(%d, %d) = %d, %v", v.dst, v.plaintext, n, ok)
		}
	}
}

// TestTooLong hands over more than GCM takes. The memory is reserved only: code that looked
// into it before the length would die of it.
func TestTooLong(t *testing.T) {
	length := uint64(MaxPlaintext + Overhead + 1)
	if length > math.MaxInt {
		t.Skip("no slice is that long where an int has 32 bits")
	}
	huge, err := syscall.Mmap(-1, 0, int(length), syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(huge)
	k := testKey(t)
	if got, err := k.Seal(nil, huge[:length-Overhead], nil); got != nil || err != ErrTooLong {
		t.Errorf("Seal: %d bytes, %v", len(got), err)
	}
	if got, err := k.Open(nil, huge, nil); got != nil || err != ErrOpen {
		t.Errorf("Open: %d bytes, %v", len(got), err)
	}
}

// TestKeyPrintsNoSecret: not even a careless log line has a byte of the mask.
func TestKeyPrintsNoSecret(t *testing.T) {
	k := testKey(t)
	mustSeal(t, k, "")
	for _, format := range []string{"%v", "%+v", "%#v", "%x"} {
		for _, holder := range []any{k, struct{ Key *Key }{k}} {
			got := fmt.Sprintf(format, holder)
			for _, secret := range []string{fmt.Sprintf(format, *k.mask), fmt.Sprintf(format, k.mask[:])} {
				if strings.Contains(got, strings.Trim(secret, "[]")) {
					t.Errorf("%s prints %s", format, got)
				}
			}
		}
	}
}

// TestWipe: no bytes and no references are left, and nothing brings them back.
func TestWipe(t *testing.T) {
	k := testKey(t)
	own, foreign := mustSeal(t, k, ""), mustSeal(t, testKey(t), "")
	checkOpens(t, k, foreign, "")
	inFlight := k.epoch.Load()
	k.Wipe()
	k.Wipe()
	if *k.mask != [16]byte{} || k.block != nil || k.epoch.Load() != nil || k.cache.Load() != nil {
		t.Error("Wipe leaves key bytes or ciphers")
	}
	if _, err := k.Seal(nil, nil, nil); err != ErrClosed {
		t.Errorf("Seal: %v", err)
	}
	for _, envelope := range [][]byte{own, foreign, nil} {
		if _, err := k.Open(nil, envelope, nil); err != ErrClosed {
			t.Errorf("Open: %v", err)
		}
	}
	// A Seal and an Open that were under way come back to a wiped key.
	if _, err := k.nextEpoch(inFlight); err != ErrClosed {
		t.Errorf("nextEpoch: %v", err)
	}
	if _, err := k.openNew(nil, foreign, nil); err != ErrClosed {
		t.Errorf("openNew: %v", err)
	}
	k.remember(inFlight)
	if k.epoch.Load() != nil || k.cache.Load() != nil {
		t.Error("a call under way undid Wipe")
	}
	if k.ID() != [16]byte{15: 9} {
		t.Error("the ID is gone")
	}
}

// TestConcurrentUse is for the race detector as much as for its own checks. The detector
// does not see a race with Wipe in every round.
func TestConcurrentUse(t *testing.T) {
	for range 20 {
		useUntilWiped(t)
	}
}

// useUntilWiped seals, opens and turns epochs on all cores until Wipe ends it.
func useUntilWiped(t *testing.T) {
	t.Helper()
	k, other := testKey(t), testKey(t)
	forged := mustSeal(t, testKey(t), "")
	forged[prefixLen] ^= 1
	var wg sync.WaitGroup
	wg.Go(func() {
		for err := ErrOpen; err != ErrClosed; { // derives, and stores nothing
			if _, err = k.Open(nil, forged, nil); err != ErrOpen && err != ErrClosed {
				t.Error(err)
			}
		}
	})
	for range 3 {
		wg.Go(func() {
			for n := 0; roundTrip(t, k, other); n++ {
				// Far more often than the count would have it, so that Open keeps deriving.
				if n%4 == 0 {
					turn(t, k)
					turn(t, other)
				}
			}
		})
	}
	for range 200 {
		roundTrip(t, k, other)
	}
	k.Wipe()
	if _, err := k.Seal(nil, nil, nil); err != ErrClosed {
		t.Errorf("Seal after Wipe: %v", err)
	}
	wg.Wait()
	if k.epoch.Load() != nil || k.cache.Load() != nil {
		t.Error("a call under way undid Wipe")
	}
}

// turn ends the epoch of k.
func turn(t *testing.T, k *Key) {
	if _, err := k.nextEpoch(k.epoch.Load()); err != nil && err != ErrClosed {
		t.Error(err)
	}
}

// roundTrip reports whether k is still open. What one key seals the other must open.
func roundTrip(t *testing.T, k, other *Key) bool {
	for _, pair := range [2][2]*Key{{k, other}, {other, k}} {
		envelope, err := pair[0].Seal(nil, []byte("x"), nil)
		if err == nil {
			var got []byte
			got, err = pair[1].Open(nil, envelope, nil)
			if err == nil && string(got) != "x" {
				t.Errorf("got %q", got)
			}
		}
		if errors.Is(err, ErrClosed) {
			return false
		}
		if err != nil {
			t.Error(err)
			return false
		}
	}
	return true
}
