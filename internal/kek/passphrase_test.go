package kek_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
	"golang.org/x/crypto/argon2"
)

func wrapped(t testing.TB, k kek.KEK) []byte {
	t.Helper()
	b, err := k.Wrap(t.Context(), []byte("material"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPassphraseKEKUnwrapsWhatItWrappedForThatAADOnly(t *testing.T) {
	k := kektest.Passphrase(t, "correct horse")
	b := wrapped(t, k)
	for _, k := range []kek.KEK{k, kektest.Passphrase(t, "correct horse")} {
		if got, err := k.Unwrap(t.Context(), b, []byte("aad")); err != nil || string(got) != "material" {
			t.Errorf("%q, %v", got, err)
		}
	}
	refuse := func(what string, k kek.KEK, b []byte, aad string) {
		t.Helper()
		if got, err := k.Unwrap(t.Context(), b, []byte(aad)); err != seal.ErrOpen || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	refuse("another AAD", k, b, "aaD")
	refuse("another passphrase", kektest.Passphrase(t, "correct hoarse"), b, "aad")
	for i := range b {
		refuse("truncated", k, b[:i], "aad")
	}
	for i := 25; i < len(b); i++ { // the last byte of the salt, and all behind it
		flipped := bytes.Clone(b)
		flipped[i] ^= 1
		refuse("a bit flipped", k, flipped, "aad")
	}
}

// TestPassphraseIsDerivedOnce for all files of a keystore: after the first one there is no
// derivation left that a context which has ended would stop.
func TestPassphraseIsDerivedOnce(t *testing.T) {
	first := kektest.Passphrase(t, "correct horse")
	files := [][]byte{wrapped(t, first), wrapped(t, first)}
	next := kektest.Passphrase(t, "correct horse")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := next.Unwrap(ended, files[0], []byte("aad")); !errors.Is(err, context.Canceled) {
		t.Errorf("it derived after the context had ended: %v", err)
	}
	if _, err := next.Unwrap(t.Context(), files[0], []byte("aad")); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Unwrap(ended, files[1], []byte("aad")); err != nil {
		t.Errorf("the second file is derived for again: %v", err)
	}
	if b, err := next.Wrap(ended, nil, nil); err != nil || !bytes.Equal(b[:26], files[0][:26]) {
		t.Errorf("a new file has another salt: %v", err)
	}
}

// quick derives at once, and counts: what it derives depends on all that argon2id's result depends on.
func quick(k kek.KEK, derived *atomic.Int32) kek.KEK {
	kek.SetArgon2(k, func(passphrase, salt []byte, time, memory uint32, threads uint8, size uint32) []byte {
		derived.Add(1)
		of := fmt.Appendf(nil, "%q %x %d %d %d %d", passphrase, salt, time, memory, threads, size)
		first, second := sha256.Sum256(of), sha256.Sum256(append(of, 2))
		return slices.Concat(first[:], second[:])[:size]
	})
	return k
}

func newQuick(t testing.TB, passphrase string, with kek.Argon2id) (kek.KEK, *atomic.Int32) {
	t.Helper()
	k, err := kek.Passphrase([]byte(passphrase), with)
	if err != nil {
		t.Fatal(err)
	}
	derived := new(atomic.Int32)
	return quick(k, derived), derived
}

// TestGoodSaltsAreNotCounted: each server has its own, and its files may be brought to one.
func TestGoodSaltsAreNotCounted(t *testing.T) {
	k, derived := newQuick(t, "correct horse", kek.Argon2id{})
	const n = 100
	for range n {
		other, _ := newQuick(t, "correct horse", kek.Argon2id{})
		if got, err := k.Unwrap(t.Context(), wrapped(t, other), []byte("aad")); err != nil || string(got) != "material" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if derived.Load() != n {
		t.Errorf("%d derivations", derived.Load())
	}
}

// TestSaltsThatOpenNothingCostTheOthersNothing: files of another passphrase, or planted ones, are derived for until a bound,
// and the rest a while later. What has opened and what is new is as quick as ever.
func TestSaltsThatOpenNothingCostTheOthersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, derived := newQuick(t, "correct horse", kek.Argon2id{})
		own := wrapped(t, k)
		fail := func() {
			t.Helper()
			other, _ := newQuick(t, "correct hoarse", kek.Argon2id{})
			if _, err := k.Unwrap(t.Context(), wrapped(t, other), []byte("aad")); !errors.Is(err, seal.ErrOpen) {
				t.Fatal(err)
			}
		}
		const most = 22 // 4 GiB of passes, each has 192 MiB
		for range 100 {
			fail()
		}
		if n := derived.Load() - 1; n != most {
			t.Errorf("%d derivations that opened nothing", n)
		}
		if _, err := k.Unwrap(t.Context(), own, []byte("aad")); err != nil {
			t.Errorf("a file whose salt is known: %v", err)
		}
		fresh, _ := newQuick(t, "correct horse", kek.Argon2id{})
		good := wrapped(t, fresh)
		if _, err := k.Unwrap(t.Context(), good, []byte("aad")); !errors.Is(err, seal.ErrOpen) || !strings.Contains(err.Error(), "later") {
			t.Errorf("another salt: %v", err)
		}
		time.Sleep(time.Minute)
		if got, err := k.Unwrap(t.Context(), good, []byte("aad")); err != nil || string(got) != "material" {
			t.Errorf("another salt, later: %q, %v", got, err)
		}
	})
}

// TestNewFileIsWrittenWhateverOpensNothing: a start may meet planted files before it has wrapped anything.
func TestNewFileIsWrittenWhateverOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := newQuick(t, "correct horse", kek.Argon2id{})
		for range 100 {
			other, _ := newQuick(t, "correct hoarse", kek.Argon2id{})
			k.Unwrap(t.Context(), wrapped(t, other), []byte("aad"))
		}
		if got, err := k.Unwrap(t.Context(), wrapped(t, k), []byte("aad")); err != nil || string(got) != "material" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestPassphraseCallEndsWithItsContext: while another derivation runs, and during its own, which goes on.
func TestPassphraseCallEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := newQuick(t, "correct horse", kek.Argon2id{})
		entry, other := wrapped(t, k), []byte(nil)
		k, _ = newQuick(t, "correct horse", kek.Argon2id{})
		other = wrapped(t, k)
		release := make(chan struct{})
		k, _ = newQuick(t, "correct horse", kek.Argon2id{})
		kek.SetArgon2(k, func(passphrase, salt []byte, time, memory uint32, threads uint8, size uint32) []byte {
			<-release
			slow, _ := newQuick(t, string(passphrase), kek.Argon2id{})
			return kek.Argon2Of(slow)(passphrase, salt, time, memory, threads, size)
		})
		errs := make(chan error, 2)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, err := k.Unwrap(ctx, entry, []byte("aad")); errs <- err }()
		synctest.Wait()
		go func() { _, err := k.Unwrap(ctx, other, []byte("aad")); errs <- err }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(errs) != 2 {
			t.Fatalf("%d calls have ended", len(errs))
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		close(release)
		synctest.Wait()
		if got, err := k.Unwrap(ctx, entry, []byte("aad")); err != nil || string(got) != "material" {
			t.Errorf("what was derived is not remembered: %q, %v", got, err)
		}
		if _, err := k.Unwrap(ctx, other, []byte("aad")); !errors.Is(err, context.Canceled) {
			t.Errorf("what nobody waits for was derived: %v", err)
		}
	})
}

// TestCommitmentComesBeforeOpening: without it, one planted file could test as many passphrases as it has blocks. So an
// entry with another commitment is not opened, though its key is right.
func TestCommitmentComesBeforeOpening(t *testing.T) {
	head := append([]byte{2, 0, 0, 0, 3, 0, 1, 0, 0, 4}, "a salt of 16 b.."...) // version, passes, KiB, lanes
	key := argon2.IDKey([]byte("correct horse"), head[10:], 3, 64<<10, 4, 64)
	nonce := []byte("twelve bytes")
	for name, c := range map[string]struct {
		commitment []byte
		opens      bool
	}{"right": {key[32:], true}, "wrong": {key[:32], false}, "none": {make([]byte, 32), false}} {
		full := append(bytes.Clone(head), c.commitment...)
		entry := append(bytes.Clone(full), sealedUnder(t, key[:32], nonce, []byte("material"), append(bytes.Clone(full), "aad"...))...)
		got, err := kektest.Passphrase(t, "correct horse").Unwrap(t.Context(), entry, []byte("aad"))
		if c.opens != (err == nil) || c.opens != (string(got) == "material") || !c.opens && err != seal.ErrOpen {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestEntryThatDoesNotCommitTellsNothing: whether it opens to what is no key, or does not open, the KEK is to blame. Else
// a planted file of the first form would tell which of many passphrases is the server's.
func TestEntryThatDoesNotCommitTellsNothing(t *testing.T) {
	k, _ := newQuick(t, "correct horse", kek.Argon2id{})
	other, _ := newQuick(t, "correct hoarse", kek.Argon2id{})
	for name, k := range map[string]kek.KEK{"opens": k, "does not": other} {
		file, _ := newKey(t)
		b, err := kek.First(k).Wrap(t.Context(), []byte("nonsense"), file.AAD())
		if err != nil {
			t.Fatal(err)
		}
		file.Wrapped = []nks.Wrapped{{KEK: "passphrase", Ciphertext: b}}
		here, _ := newQuick(t, "correct horse", kek.Argon2id{})
		_, err = kek.NewSet([]kek.KEK{here}, nil).Decode(t.Context(), &file)
		if id, asked := blamed(t, err); id != "passphrase" || !asked {
			t.Errorf("%s: %v blames %q", name, err, id)
		}
	}
}

// TestPassphraseParametersAreTheFiles makes a file with others than PassphraseKEK does, by hand.
func TestPassphraseParametersAreTheFiles(t *testing.T) {
	head := []byte{1, 0, 0, 0, 4, 0, 1, 4, 0, 2} // version, passes, KiB, lanes
	head = append(head, "a salt of 16 b.."...)
	key := argon2.IDKey([]byte("correct horse"), head[10:], 4, 65<<10, 2, 32)
	file := append(bytes.Clone(head), sealedUnder(t, key, []byte("twelve bytes"), []byte("material"), append(bytes.Clone(head), "aad"...))...)
	if got, err := kektest.Passphrase(t, "correct horse").Unwrap(t.Context(), file, []byte("aad")); err != nil || string(got) != "material" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestPassphraseFileDemandsNoMore than the bounds: nothing is derived. It is no failure of the KEK.
func TestPassphraseFileDemandsNoMore(t *testing.T) {
	for name, c := range map[string]struct {
		alter func(b []byte)
		fits  bool
	}{
		"4 TiB":                  {func(b []byte) { binary.BigEndian.PutUint32(b[5:], 1<<32-1) }, false},
		"683 MiB":                {func(b []byte) { binary.BigEndian.PutUint32(b[5:], 683<<10) }, false},
		"682 MiB":                {func(b []byte) { binary.BigEndian.PutUint32(b[5:], 682<<10) }, true},
		"63 MiB":                 {func(b []byte) { binary.BigEndian.PutUint32(b[5:], 63<<10) }, false},
		"2 passes":               {func(b []byte) { binary.BigEndian.PutUint32(b[1:], 2) }, false},
		"33 passes":              {func(b []byte) { binary.BigEndian.PutUint32(b[1:], 33) }, false},
		"32 passes":              {func(b []byte) { binary.BigEndian.PutUint32(b[1:], 32) }, true},
		"2^32-1 passes":          {func(b []byte) { binary.BigEndian.PutUint32(b[1:], 1<<32-1) }, false},
		"RFC 9106, first choice": {func(b []byte) { copy(b[1:], "\x00\x00\x00\x01\x00\x20\x00\x00") }, true},
		"no lanes":               {func(b []byte) { b[9] = 0 }, false},
		"17 lanes":               {func(b []byte) { b[9] = 17 }, false},
		"next to no memory":      {func(b []byte) { copy(b[1:], "\x00\x10\x00\x00\x00\x00\x00\x01") }, false},
	} {
		k, derived := newQuick(t, "correct horse", kek.Argon2id{}) // salts that open nothing have a limit: each case has its own
		b := wrapped(t, k)
		c.alter(b)
		before := derived.Load()
		_, err := k.Unwrap(t.Context(), b, []byte("aad"))
		if !errors.Is(err, seal.ErrOpen) || (derived.Load() > before) != c.fits {
			t.Errorf("%s: %v, %d derivations", name, err, derived.Load()-before)
		}
	}
}

func TestPassphraseParametersAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		with kek.Argon2id
		ok   bool
	}{
		"default":                 {kek.Argon2id{}, true},
		"RFC 9106, first choice":  {kek.Argon2id{Time: 1, Memory: 2 << 20, Threads: 4}, true},
		"RFC 9106, second choice": {kek.Argon2id{Time: 3, Memory: 64 << 10, Threads: 4}, true},
		"more memory":             {kek.Argon2id{Memory: 256 << 10}, true},
		"one thread":              {kek.Argon2id{Threads: 1}, true},
		"less than the default":   {kek.Argon2id{Time: 2}, false},
		"too much memory":         {kek.Argon2id{Memory: 2 << 20}, false},
		"4 TiB":                   {kek.Argon2id{Memory: 1<<32 - 1}, false},
		"too many threads":        {kek.Argon2id{Threads: 17}, false},
	} {
		if _, err := kek.Passphrase([]byte("correct horse"), c.with); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := kek.Passphrase(nil, kek.Argon2id{}); err == nil {
		t.Error("an empty passphrase")
	}
}

// TestOtherParametersAreOutdated: lower ones and higher ones open, are to be rewrapped, and then have the parameters of now.
func TestOtherParametersAreOutdated(t *testing.T) {
	low := kek.Argon2id{}
	high := kek.Argon2id{Time: 1, Memory: 2 << 20, Threads: 4}
	for _, c := range []struct{ was, is kek.Argon2id }{{low, high}, {high, low}, {low, low}, {high, high}} {
		was, _ := newQuick(t, "correct horse", c.was)
		is, _ := newQuick(t, "correct horse", c.is)
		set := kek.NewSet([]kek.KEK{is}, nil)
		for _, form := range []kek.KEK{was, kek.First(was)} {
			file := encoded(t, form)
			got, err := set.Decode(t.Context(), file)
			if err != nil || got.Rewrap != (c.was != c.is) {
				t.Errorf("%v to %v: to be rewrapped: %v, %v", c.was, c.is, got.Rewrap, err)
				continue
			}
			content, _, err := set.Encode(t.Context(), file, got.Material)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := set.Decode(t.Context(), decoded(t, content)); err != nil || got.Rewrap {
				t.Errorf("rewrapped: to be rewrapped: %v, %v", got.Rewrap, err)
			}
		}
	}
}
