package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
)

// TestOldKEKSilencesNoPresentOneOfItsName: a KMS was destroyed and set up again under the same name.
func TestOldKEKSilencesNoPresentOneOfItsName(t *testing.T) {
	disk, present, gone := keyringtest.NewDisk(), namedVault(t, 1), namedVault(t, 2)
	gone.Set(away["fails"])
	plantKey(t, disk, meta.KeyID{1}, present)
	if s := openStore(t, disk, []kek.KEK{present}, []kek.KEK{gone}); !s.Confirm(meta.KeyID{1}) || s.OnOldKEKs() != 0 {
		t.Error("the file under the present KEK does not open")
	}
}

// TestFileWithAWayBackIsNotSetAside: one entry opens to nonsense, and there is another.
func TestFileWithAWayBackIsNotSetAside(t *testing.T) {
	local := fileKEK(t, countingKey())
	for name, other := range map[string]*kms{"not configured": newKMS("b"), "away": newKMS("a")} {
		disk := keyringtest.NewDisk()
		plantKey(t, disk, meta.KeyID{1}, other)
		file, err := nks.DecodeFile(disk.Bytes(nks.FileName(meta.KeyID{1})))
		if err != nil {
			t.Fatal(err)
		}
		nonsense, err := local.Wrap(t.Context(), []byte("nonsense"), file.AAD())
		if err != nil {
			t.Fatal(err)
		}
		file.Wrapped = append(file.Wrapped, nks.Wrapped{KEK: local.ID(), Ciphertext: nonsense})
		b, err := file.Encode()
		if err != nil {
			t.Fatal(err)
		}
		disk.Plant(nks.FileName(meta.KeyID{1}), 0o600, b)
		a := newKMS("a")
		a.Set(away["fails"])
		if s := openStore(t, disk, []kek.KEK{a, local}, nil); len(s.SetAside()) > 0 || s.OnOldKEKs() != 1 {
			t.Errorf("%s: set aside %v, %d on old KEKs", name, s.SetAside(), s.OnOldKEKs())
		}
	}
}

// TestWrongKEKThatAuthenticatesNothingSetsNothingAside: what it unwraps is no key, and that is
// its own fault.
func TestWrongKEKThatAuthenticatesNothingSetsNothingAside(t *testing.T) {
	disk := keyringtest.NewDisk()
	plantKey(t, disk, meta.KeyID{1}, kektest.Garbler{Name: "kms", Key: 1})
	before := fmt.Sprint(keyFiles(disk))
	s := openStore(t, disk, []kek.KEK{kektest.Garbler{Name: "kms", Key: 2}}, nil)
	if s.Confirm(meta.KeyID{1}) || len(s.SetAside()) > 0 || s.OnOldKEKs() != 1 {
		t.Errorf("set aside %v, %d on old KEKs", s.SetAside(), s.OnOldKEKs())
	}
	s.Close()
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("a file was touched")
	}
	if s = openStore(t, disk, []kek.KEK{kektest.Garbler{Name: "kms", Key: 1}}, nil); !s.Confirm(meta.KeyID{1}) {
		t.Error("it does not open with the right one")
	}
}

// slowKMS is a KMS that takes its time, and counts how many calls are on their way.
type slowKMS struct {
	kek.KEK
	takes time.Duration

	mu      sync.Mutex // guards below
	err     error
	now     int
	most    int
	calls   int
	overdue bool // a call had no deadline, or one too far away
}

func (k *slowKMS) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := k.take(ctx); err != nil && !errors.Is(err, seal.ErrOpen) { // which says nothing about wrapping
		return nil, err
	}
	return k.KEK.Wrap(ctx, plaintext, aad)
}

func (k *slowKMS) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := k.take(ctx); err != nil {
		return nil, err
	}
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// take is what a call takes, and what comes of it.
func (k *slowKMS) take(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now++
	k.calls++
	k.most = max(k.most, k.now)
	if d, ok := ctx.Deadline(); !ok || time.Until(d) > 10*time.Second {
		k.overdue = true
	}
	err := k.err
	k.mu.Unlock()
	time.Sleep(k.takes) // virtual
	k.mu.Lock()
	k.now--
	return err
}

// atOnce is how many key files are worked on at a time.
const atOnce = 16

// TestManyFilesDoNotStampedeASlowKMS: they are read side by side, up to a bound, which is also
// reached, and each call has a deadline.
func TestManyFilesDoNotStampedeASlowKMS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const files, rounds = 1000, (1000 + atOnce - 1) / atOnce
		disk, escrow := keyringtest.NewDisk(), ageKEK(t, ageIdentity(t))
		for i := range files {
			plantKey(t, disk, meta.KeyID{1, byte(i >> 8), byte(i)}, escrow, newKMS("a"))
		}
		k := &slowKMS{KEK: newKMS("a"), takes: 20 * time.Millisecond}
		began := time.Now()
		s := openStore(t, disk, []kek.KEK{escrow, k}, nil)
		if d, want := time.Since(began), k.takes*(2+rounds); d != want { // the probe is wrapped and opened
			t.Errorf("%v, side by side it is %v", d, want)
		}
		if k.most != atOnce || k.calls != files+2 || k.overdue {
			t.Errorf("%d calls for %d files, %d at a time, overdue: %v", k.calls, files, k.most, k.overdue)
		}
		if !s.Confirm(meta.KeyID{1, 0, 1}) || s.OnOldKEKs() > 0 || s.Away() != nil {
			t.Errorf("not held, or %d on old KEKs, or %v", s.OnOldKEKs(), s.Away())
		}
		s.Close()
	})
}

// TestNewKeysAreWrappedInParallel, up to the same bound, after the first has shown that
// the KMS answers.
func TestNewKeysAreWrappedInParallel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := &slowKMS{KEK: newKMS("a"), takes: 20 * time.Millisecond}
		s := openStore(t, keyringtest.NewDisk(), []kek.KEK{k}, nil)
		keys := map[meta.KeyID]*nks.Material{}
		for i := range 1 + 4*atOnce {
			m, err := nks.Generate("EdDSA")
			if err != nil {
				t.Fatal(err)
			}
			keys[meta.KeyID{1, byte(i)}] = m
		}
		k.most = 0
		began := time.Now()
		errs := s.Put(t.Context(), keys)
		if d, want := time.Since(began), k.takes*2*(1+4); d != want { // wrapped, then opened
			t.Errorf("%v, side by side it is %v", d, want)
		}
		if k.most != atOnce {
			t.Errorf("%d at a time", k.most)
		}
		for id, err := range errs {
			if err != nil || !s.Confirm(id) {
				t.Errorf("%s: %v", id, err)
			}
		}
		s.Close()
	})
}

// TestKMSThatFailsSlowlyIsNotAskedForEachFile: one that answers the probe, or is old, and then
// takes seconds to fail. It counts as away once a probe has failed too, unless it has answered, if only no.
func TestKMSThatFailsSlowlyIsNotAskedForEachFile(t *testing.T) {
	t.Parallel()
	for err, most := range map[error]int{errAway: 20, seal.ErrOpen: 1003} {
		synctest.Test(t, func(t *testing.T) {
			disk, gone := keyringtest.NewDisk(), newKMS("gone")
			for i := range 1000 {
				plantKey(t, disk, meta.KeyID{1, byte(i >> 8), byte(i)}, gone)
			}
			plantKey(t, disk, meta.KeyID{2}, gone, newKMS("a"))
			// As the KEKs of module kms do, it knows by itself that the probe is nothing of its own.
			k := &slowKMS{KEK: gone, takes: 3 * time.Second, err: err}
			began := time.Now()
			s := openStore(t, disk, []kek.KEK{newKMS("a")}, []kek.KEK{answersProbes{k}})
			if d := time.Since(began); d > time.Duration(most)*k.takes/16+4*k.takes || k.calls > most {
				t.Errorf("%v: %v, %d calls", err, d, k.calls)
			}
			if (s.Away() != nil) != (err == errAway) {
				t.Errorf("%v: away: %v", err, s.Away())
			}
			if !s.Confirm(meta.KeyID{2}) || len(s.SetAside()) > 0 {
				t.Errorf("%v: what another KEK opens is not held", err)
			}
			s.Close()
		})
	}
}

// answersProbes is a KEK that knows by their length what it has not wrapped.
type answersProbes struct{ kek.KEK }

func (k answersProbes) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if len(wrapped) < 32 {
		return nil, seal.ErrOpen
	}
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// TestKEKThatFailsNowAndThenIsNotAway: between two failures it opens files.
func TestKEKThatFailsNowAndThenIsNotAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, a, stray := keyringtest.NewDisk(), newKMS("a"), namedVault(t, 7)
		stray.Name = "a"
		for i := range 250 {
			kek := a
			if i%10 == 0 {
				kek = stray
			}
			plantKey(t, disk, meta.KeyID{byte(i)}, kek)
		}
		s := openStore(t, disk, []kek.KEK{kektest.Picky{KEK: &slowKMS{KEK: a, takes: 3 * time.Second}}}, nil)
		if s.Away() != nil || s.OnOldKEKs() != 25 {
			t.Errorf("away: %v, %d files do not open", s.Away(), s.OnOldKEKs())
		}
		s.Close()
	})
}

// TestPassphraseIsDerivedOnceForThousandsOfFiles, though they are read side by side.
func TestPassphraseIsDerivedOnceForThousandsOfFiles(t *testing.T) {
	disk, first := keyringtest.NewDisk(), passphraseKEK(t, "correct horse")
	const files = 2000
	for i := range files {
		plantKey(t, disk, meta.KeyID{1, byte(i >> 8), byte(i)}, first)
	}
	next := passphraseKEK(t, "correct horse")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := openStore(t, disk, []kek.KEK{next}, nil)
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / (64 << 20); n != 1 {
		t.Errorf("memory for %d derivations", n)
	}
	for i := range files {
		if !s.Confirm(meta.KeyID{1, byte(i >> 8), byte(i)}) {
			t.Fatalf("file %d is not held", i)
		}
	}
}

// TestPassphraseFilesShareOneSalt also where another KEK opens them: each salt is a derivation on
// the day when the passphrase is needed, and there is a bound on them.
func TestPassphraseFilesShareOneSalt(t *testing.T) {
	disk, a := keyringtest.NewDisk(), newKMS("a")
	for i := range 3 {
		s := openStore(t, disk, []kek.KEK{a, passphraseKEK(t, "correct horse")}, nil)
		if _, err := put(t, s, meta.KeyID{byte(i)}); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	salts := map[string]bool{}
	for _, content := range keyFiles(disk) {
		f, err := nks.DecodeFile([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		salts[string(f.Wrapped[1].Ciphertext[:26])] = true
	}
	if len(salts) != 1 {
		t.Errorf("%d salts", len(salts))
	}
}

// TestOpenLooksAtTheFilesOfKEKs: a Status right after it warns of what others may read.
func TestOpenLooksAtTheFilesOfKEKs(t *testing.T) {
	path := kektest.WriteFile(t, countingKey())
	k, err := kek.File(path)
	if err := errors.Join(err, os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	if s := openStore(t, keyringtest.NewDisk(), []kek.KEK{k}, nil); s.keks.Status()[0].Warning == "" {
		t.Error("nothing is said")
	}
}
