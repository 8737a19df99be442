package keystore_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

func TestMain(m *testing.M) {
	if keyringtest.Drilled(keystoreDrills...) {
		return
	}
	os.Exit(m.Run())
}

// TestI8EverySystemCallOfTheKeystoreKilledOrFailed is invariant I8 on the real file system:
// every system call that has to do with the directory is the last one of the process, and
// fails with each error, and no key that was ever held is lost.
func TestI8EverySystemCallOfTheKeystoreKilledOrFailed(t *testing.T) {
	for _, d := range keystoreDrills {
		t.Run(d.Name, d.Run)
	}
}

var keystoreDrills = []keyringtest.Drill{
	{Name: "keystore, found", Prepare: prepareFound, Do: doFound, Check: checkFound, Skip: polled},
	{Name: "keystore, new", Prepare: func(*testing.T, string) {}, Do: doNew, Check: checkNew, Skip: polled},
}

// polled are the calls with which os asks whether a new descriptor can be polled. It takes
// any error for a no: package durable's drills have them.
var polled = []string{"fcntl", "epoll_ctl"}

// The keys of a keystore that was there before.
var (
	fleeing = meta.KeyID{2} // removed and taken back
	losing  = meta.KeyID{3} // its file goes, and is written again from memory
	removed = meta.KeyID{4} // removed before, and unlinked
	spoilt  = meta.KeyID{5} // no key file
	altered = meta.KeyID{6} // its file is of version 2, and somebody has altered it
)

const (
	notAKey   = "no key file, and kept all the same"
	knownID   = "00112233445566778899aabbccddeeff\n"
	staleTemp = ".tmp-000102030405060708090a0b0c0d0e0f"
)

// drillKeys are the keys that were there before.
var drillKeys = sync.OnceValue(func() map[meta.KeyID]*nks.Material {
	keys := map[meta.KeyID]*nks.Material{}
	for _, id := range []meta.KeyID{fleeing, losing, removed, altered} {
		keys[id] = newMaterial()
	}
	return keys
})

func drillKEK(n byte) []kek.KEK {
	k, err := kek.FromKey(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		panic(err)
	}
	return []kek.KEK{k}
}

// drillKMS is the KEK that files are moved to, which wraps with that version of its key.
func drillKMS(version int) *kektest.Versioned {
	k := kektest.NewVersioned("kms")
	k.Inner = drillKEK(2)[0]
	for range version - 1 {
		k.Rotate()
	}
	return k
}

func openRealStore(t *testing.T, dir string, keks, old []kek.KEK) store {
	t.Helper()
	fsys, err := durable.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openOn(t.Context(), fsys, keks, old)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func prepareFound(t *testing.T, dir string) {
	s := openRealStore(t, dir, drillKEK(1), nil)
	keys := maps.Clone(drillKeys())
	delete(keys, altered)
	for id, err := range s.Put(t.Context(), keys) {
		if err != nil {
			t.Fatal(id, err)
		}
	}
	s.UseFiles(2)
	if err := s.Put(t.Context(), map[meta.KeyID]*nks.Material{altered: drillKeys()[altered]})[altered]; err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Remove(removed), s.Close()); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		nks.FileName(spoilt): notAKey, "keystore.id": knownID, staleTemp: "torn",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, nks.FileName(altered)), alteredFile(t, dir), 0o600); err != nil {
		t.Fatal(err)
	}
}

// alteredFile returns the file of a key as somebody has altered it.
func alteredFile(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, nks.FileName(altered)))
	if err != nil {
		t.Fatal(err)
	}
	file, err := nks.DecodeFile(b)
	if err != nil {
		t.Fatal(err)
	}
	file.Created = alteredAt
	if b, err = file.Encode(); err != nil {
		t.Fatal(err)
	}
	return b
}

var alteredAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// steps are what a server does with a keystore, each once. To add one is to add a line here,
// and to checkFound what it leaves.
var steps = []struct {
	name string
	do   func(l *drillLife) error
}{
	{"put one", func(l *drillLife) error { return l.put(meta.KeyID{0x11}) }},
	{"put many", func(l *drillLife) error { return l.put(meta.KeyID{0x12}, meta.KeyID{0x13}) }},
	{"lose", func(l *drillLife) error { // somebody else would
		if !l.Confirm(losing) {
			return errors.New("it could not be read, and would be lost for good")
		}
		return l.fsys.Remove(nks.FileName(losing))
	}},
	{"rewrite", func(l *drillLife) error {
		l.Confirm(losing) // it notices
		return l.Rewrite(l.ctx, losing)
	}},
	{"rewrap", func(l *drillLife) error {
		err := l.Rewrap(l.ctx)
		l.UseFiles(2)
		return err
	}},
	{"renew", func(l *drillLife) error {
		if l.Renew(l.ctx); l.HasToRenew() {
			return errors.New("files are left")
		}
		return nil
	}},
	{"next version", func(l *drillLife) error {
		l.kms.Rotate()
		return l.Rewrap(l.ctx)
	}},
	{"remove", func(l *drillLife) error { return l.Remove(fleeing) }},
	{"take back", func(l *drillLife) error { return l.TakeBack(l.ctx, fleeing) }},
	{"unlink", func(l *drillLife) error { return l.Unlink(removed) }},
	{"close", func(l *drillLife) error { return l.Close() }},
}

// drillLife is one start of a keystore in the other process.
type drillLife struct {
	store
	ctx  context.Context
	pin  *keyringtest.Pin
	fsys durable.FS
	kms  *kektest.Versioned // nil in a drill without one
}

// start returns nil if it can't.
func start(p *keyringtest.Pin, dir string, keks, old []kek.KEK) *drillLife {
	l := &drillLife{ctx: context.Background(), pin: p}
	var err error
	if l.fsys, err = p.OpenDir(dir); err == nil {
		l.store, err = openOn(l.ctx, l.fsys, keks, old)
	}
	if p.Done("start", err); err != nil {
		return nil
	}
	return l
}

func doFound(p *keyringtest.Pin, dir string) {
	kms := drillKMS(1)
	l := start(p, dir, []kek.KEK{kms}, drillKEK(1))
	if l == nil {
		return
	}
	l.kms = kms
	for _, step := range steps {
		p.Done(step.name, step.do(l))
	}
}

// put makes keys and says of each that is held what it is.
func (l *drillLife) put(ids ...meta.KeyID) error {
	keys := map[meta.KeyID]*nks.Material{}
	for _, id := range ids {
		keys[id] = newMaterial()
	}
	var errs []error
	for id, err := range l.Put(l.ctx, keys) {
		if errs = append(errs, err); err == nil {
			l.pin.Say("held %s %x", id, keys[id].Check(id, "EdDSA"))
		}
	}
	return errors.Join(errs...)
}

// saidToBeHeld are the new keys of which the process has said that they are held.
func saidToBeHeld(t *testing.T, said []string) map[meta.KeyID][32]byte {
	t.Helper()
	held := map[meta.KeyID][32]byte{}
	for _, line := range said {
		words := strings.Fields(line)
		if words[0] != "held" {
			continue
		}
		id, err := meta.ParseKeyID(words[1])
		check, err2 := hex.DecodeString(words[2])
		if err := errors.Join(err, err2); err != nil || len(check) != 32 {
			t.Fatalf("%q: %v", line, err)
		}
		held[id] = [32]byte(check)
	}
	return held
}

// checkFound starts the keystore once more and looks for all that was there and that was said.
func checkFound(t *testing.T, dir, when string, said []string) {
	t.Helper()
	done := func(step string) bool { return slices.Contains(said, "done "+step) }
	begun := func(step string) bool { // the one before has come to its end
		for i, s := range steps {
			if s.name == step {
				return slices.ContainsFunc(said, func(line string) bool { return strings.Contains(line, " "+steps[i-1].name) })
			}
		}
		return false
	}
	held := saidToBeHeld(t, said)
	for id, m := range drillKeys() {
		held[id] = m.Check(id, "EdDSA")
	}
	if begun("lose") && !done("rewrite") {
		delete(held, losing) // its file may be gone, and the process that had it in memory is
	}
	old, kms := drillKEK(1), drillKMS(2)
	if done("rewrap") {
		old = nil
	}
	wrote := !slices.ContainsFunc(said, func(line string) bool { return strings.HasPrefix(line, "failed put") })
	if done("next version") && wrote { // what could not be written may lie there all the same, for nobody
		kms.Destroy()
	}
	s := openRealStore(t, dir, []kek.KEK{kms}, old)
	if aside := asideOf(t, dir, fleeing); done("remove") && !begun("take back") && (s.Has(fleeing, held[fleeing]) || aside != 1) {
		t.Errorf("%s: a removed key is set aside %d times, not once", when, aside)
	}
	if begun("unlink") && asideOf(t, dir, removed) == 0 {
		delete(held, removed)
	} else if done("unlink") {
		t.Errorf("%s: unlinked and still there", when)
	}
	for _, id := range []meta.KeyID{fleeing, removed} {
		if err := s.TakeBack(t.Context(), id); err != nil {
			t.Errorf("%s: take back %s: %v", when, id, err)
		}
	}
	s.UseFiles(2)
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 { // so there is no file that nothing opens
		t.Errorf("%s: rewrap: %v, %d left", when, err, s.OnOldKEKs())
	}
	checkHeld(t, s, when, held)
	kms.Destroy()
	s = openRealStore(t, dir, []kek.KEK{kms}, nil)
	if s.HasToRenew() {
		t.Errorf("%s: files are left that are altered, or of version 1", when)
	}
	checkHeld(t, s, when+", under the new version of the new KEK alone", held)
	kept := map[string]string{"keystore.id": knownID, nks.FileName(spoilt) + ".malformed-1": notAKey}
	checkCopy(t, dir, when, kept)
	checkKept(t, dir, when, kept)
}

// checkCopy wants the one copy of the altered file, and notes it among those to be kept. Where an error has kept it from being
// made, there may be none.
func checkCopy(t *testing.T, dir, when string, kept map[string]string) {
	t.Helper()
	name := nks.FileName(altered) + ".altered-1"
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil && strings.Contains(when, "error=") {
		return
	}
	if file, bad := nks.DecodeFile(b); bad != nil || !file.Created.Equal(alteredAt) {
		t.Errorf("%s: %s holds %q, %v", when, name, b, err)
	}
	kept[name] = string(b)
}

// checkHeld wants the keys to be held, with these check values, and closes the keystore.
func checkHeld(t *testing.T, s store, when string, held map[meta.KeyID][32]byte) {
	t.Helper()
	for id, check := range held {
		if !s.Has(id, check) || !s.Confirm(id) {
			t.Errorf("%s: key %s is lost", when, id)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s: close: %v", when, err)
	}
}

// checkKept wants these files, and beside them nothing but key files and the lock.
func checkKept(t *testing.T, dir, when string, kept map[string]string) {
	t.Helper()
	for name, content := range kept {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != content {
			t.Errorf("%s: %s holds %q, %v", when, name, b, err)
		}
	}
	for _, name := range namesIn(t, dir) {
		if _, isKey := nks.ParseFileName(name); !isKey && name != ".lock" && kept[name] == "" {
			t.Errorf("%s: %s is left", when, name)
		}
	}
}

// asideOf counts the files that were set aside of a removed key.
func asideOf(t *testing.T, dir string, id meta.KeyID) (n int) {
	t.Helper()
	for _, name := range namesIn(t, dir) {
		if strings.HasPrefix(name, nks.FileName(id)+".removed-") {
			n++
		}
	}
	return n
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// doNew is a first start, which makes the directory and draws the keystore's ID.
func doNew(p *keyringtest.Pin, dir string) {
	if l := start(p, dir, drillKEK(1), nil); l != nil {
		l.Close()
	}
}

func checkNew(t *testing.T, dir, when string, said []string) {
	t.Helper()
	before, _ := os.ReadFile(filepath.Join(dir, "keystore.id"))
	s := openRealStore(t, dir, drillKEK(1), nil)
	checkHeld(t, s, when, nil)
	after, err := os.ReadFile(filepath.Join(dir, "keystore.id"))
	if started := slices.Contains(said, "done start"); len(after) != 33 || started && !bytes.Equal(before, after) {
		t.Errorf("%s: the keystore's ID is %q, it was %q, %v", when, after, before, err)
	}
	checkKept(t, dir, when, map[string]string{"keystore.id": string(after)})
}
