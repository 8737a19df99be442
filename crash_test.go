package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

var crashCount = flag.Int("crashes", 3000, "crash points of TestI8KeystoreSurvivesAnyCrash")

// TestI8KeystoreSurvivesAnyCrash lives random lives of a keystore on a simulated disk: keys
// are made, files go bad and are set aside, KEKs change and files are rewrapped, starts are
// cut short, operations fail, and every life ends in a crash at a random operation with the
// unsynced parts kept, dropped, reordered or torn. After each the keystore starts, and every
// key that was ever held is held. -crashes says how many.
func TestI8KeystoreSurvivesAnyCrash(t *testing.T) {
	servers := runtime.GOMAXPROCS(0)
	for server := range servers {
		t.Run(fmt.Sprint("server", server), func(t *testing.T) {
			t.Parallel()
			campaignOf(t, uint64(server), *crashCount/servers)
		})
	}
}

func campaignOf(t *testing.T, seed uint64, crashes int) {
	c := newCampaign(t, seed)
	for c.points < crashes && !t.Failed() {
		c.live()
		c.crash()
		c.recover()
	}
	for _, what := range []string{"put", "put many", "rewrap", "remove", "unlink", "take back", "adopt", "bad file", "start", "recovery"} {
		if c.during[what] == 0 {
			t.Errorf("no crash during %s", what)
		}
	}
	t.Logf("%d crash points: %v", c.points, c.during)
}

// campaign is the keystore of one server over many lives.
type campaign struct {
	t      *testing.T
	chance *rand.Rand
	disk   *keyringtest.Disk
	keks   []keyring.KEK // all there ever were; the last one wraps
	needed int           // from this one on they are configured
	held   map[keyring.KeyID][32]byte
	buried map[keyring.KeyID][32]byte // removed, and to be taken back if need be
	gone   map[keyring.KeyID]bool     // unlinked
	nomad  map[string][]byte          // Nomad's files, which are to stay
	bad    [][]byte                   // content that is to be kept in files set aside
	what   string                     // what is being done
	points int
	during map[string]int
}

func newCampaign(t *testing.T, seed uint64) *campaign {
	c := &campaign{
		t: t, chance: rand.New(rand.NewPCG(1, seed)), disk: keyringtest.NewDisk(),
		during: map[string]int{},
	}
	c.replace()
	return c
}

// replace puts a new server in place of the old one.
func (c *campaign) replace() {
	c.disk, c.bad, c.keks, c.needed = keyringtest.NewDisk(), nil, nil, 0
	c.nomad = map[string][]byte{}
	c.held, c.buried, c.gone = map[keyring.KeyID][32]byte{}, map[keyring.KeyID][32]byte{}, map[keyring.KeyID]bool{}
	c.newKEK()
}

func (c *campaign) newKEK() {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(c.chance.Uint32())
	}
	kek, err := keyring.NewFileKEK(key)
	if err != nil {
		c.t.Fatal(err)
	}
	c.keks = append(c.keks, kek)
}

func (c *campaign) open() (keyring.Store, error) {
	fsys, err := c.disk.Open()
	if err != nil {
		return keyring.Store{}, err
	}
	last := len(c.keks) - 1
	return keyring.OpenStore(c.t.Context(), fsys, c.keks[last:], append(c.keks[c.needed:last:last], keyring.InlineKEK()))
}

// live does things until the crash that it arms.
func (c *campaign) live() {
	if len(c.held)+len(c.buried) > 12 || len(c.bad) > 12 || len(c.nomad) > 12 || len(c.keks) > 12 { // to stay small
		c.replace()
	}
	at, faulty := 1+c.chance.IntN(60), c.chance.IntN(3) == 0
	var ops atomic.Int64 // scans read several files at a time
	applied := c.points%2 == 0
	c.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		n := int(ops.Add(1))
		switch {
		case n >= at:
			return keyringtest.Fault{Err: keyringtest.ErrCrashed, Applied: applied}
		case faulty && n%11 == 10:
			return faults[n/11%len(faults)]
		}
		return keyringtest.Fault{}
	})
	c.what = "start"
	s, err := c.open()
	if err != nil {
		return // it crashed, or a fault kept it from starting
	}
	for range 3 {
		switch c.chance.IntN(7) {
		case 0:
			c.what = "put"
			c.put(s, 1)
		case 1:
			c.what = "put many"
			c.put(s, 3)
		case 2:
			c.what = "rewrap"
			for id := range s.FromNomad() { // it gets a file of ours
				delete(c.gone, id)
			}
			if err := s.Rewrap(c.t.Context()); err == nil && s.OnOldKEKs() == 0 {
				c.needed = len(c.keks) - 1 // from now on without the old ones
			}
		case 3:
			c.what = "remove"
			c.remove(s)
		case 4:
			c.what = "unlink"
			c.unlink(s)
		case 5:
			c.what = "take back"
			c.takeBack(s)
		case 6:
			c.what = "adopt"
			c.adopt(s)
		}
	}
	s.Close()
}

// put makes new keys. Those that it says are held have to be held for ever.
func (c *campaign) put(s keyring.Store, n int) {
	keys := map[keyring.KeyID]*nks.Material{}
	for range n {
		m, err := nks.Generate("EdDSA")
		if err != nil {
			c.t.Fatal(err)
		}
		keys[keyring.KeyID{byte(c.chance.Uint32()), byte(c.chance.Uint32()), byte(c.chance.Uint32())}] = m
	}
	for id, err := range s.Put(c.t.Context(), keys) {
		if err == nil {
			c.held[id] = keys[id].Check(id, "EdDSA")
		}
	}
}

// any returns one of the keys.
func (c *campaign) any(keys map[keyring.KeyID][32]byte) (keyring.KeyID, bool) {
	ids := slices.SortedFunc(maps.Keys(keys), func(a, b keyring.KeyID) int { return bytes.Compare(a[:], b[:]) })
	if len(ids) == 0 {
		return keyring.KeyID{}, false
	}
	return ids[c.chance.IntN(len(ids))], true
}

// remove removes a key in a way that can be undone, whatever comes of it.
func (c *campaign) remove(s keyring.Store) {
	if id, ok := c.any(c.held); ok {
		c.buried[id] = c.held[id]
		delete(c.held, id)
		s.Remove(id)
	}
}

// unlink removes one for good. If it says so, nothing may be left.
func (c *campaign) unlink(s keyring.Store) {
	if id, ok := c.any(c.buried); ok {
		delete(c.buried, id)
		if s.Remove(id) == nil && s.Unlink(id) == nil {
			c.gone[id] = true
		}
	}
}

// takeBack undoes a removal. If the key is held then, it has to be held for ever.
func (c *campaign) takeBack(s keyring.Store) {
	if id, ok := c.any(c.buried); ok {
		if err := s.TakeBack(c.t.Context(), id); err == nil && s.Has(id, c.buried[id]) {
			c.held[id] = c.buried[id]
			delete(c.buried, id)
		}
	}
}

// adopt makes keys of Nomad's durable that are in memory only.
func (c *campaign) adopt(s keyring.Store) {
	for id, check := range s.FromNomad() {
		delete(c.buried, id)
		delete(c.gone, id)
		if s.Rewrite(c.t.Context(), id) == nil {
			c.held[id] = check
		}
	}
}

func (c *campaign) crash() {
	how := keyringtest.Losses[c.chance.IntN(len(keyringtest.Losses))]
	c.points++
	c.during[c.what]++
	c.disk = c.disk.Crash(how, c.chance.Uint64())
}

// recover starts anew, now and then only after another crash, and looks at everything.
func (c *campaign) recover() {
	if c.chance.IntN(4) == 0 {
		at := 1 + c.chance.Int64N(30)
		var ops atomic.Int64
		c.disk.OnOp(func(keyringtest.Op) keyringtest.Fault {
			if ops.Add(1) >= at {
				return keyringtest.Fault{Err: keyringtest.ErrCrashed}
			}
			return keyringtest.Fault{}
		})
		c.what = "recovery"
		if s, err := c.open(); err == nil {
			s.Close()
		}
		c.crash()
	}
	s, err := c.open()
	if err != nil {
		c.t.Fatalf("point %d: %v", c.points, err)
	}
	when := fmt.Sprintf("point %d, %s", c.points, c.what)
	for id, check := range c.held {
		if !s.Has(id, check) || !s.Confirm(id) {
			c.t.Errorf("%s: key %s is lost", when, id)
		}
	}
	for id, check := range c.buried {
		if s.Has(id, check) { // the crash came before it was set aside
			continue
		}
		err := s.TakeBack(c.t.Context(), id)
		if err == nil && s.FromNomad()[id] == check { // whose file is as good
			err = s.Rewrite(c.t.Context(), id)
		}
		if err != nil || !s.Confirm(id) {
			c.t.Errorf("%s: removed key %s can't be taken back: %v", when, id, err)
		}
		s.Remove(id)
	}
	c.checkFiles(when)
	s.Close()
	if r := c.disk.Resynced(); len(r) > 0 {
		c.t.Errorf("%s: a failed sync was repeated: %v", when, r)
	}
	c.change()
}

// change is what people do between two starts: they change the KEKs, and spoil files.
func (c *campaign) change() {
	switch c.chance.IntN(5) {
	case 0:
		c.newKEK()
	case 2:
		k := nomadKey{id: keyring.KeyID{0x4e, byte(c.chance.Uint32()), byte(len(c.nomad))}, form: []string{"1.4", "1.9"}[c.chance.IntN(2)]}
		copy(k.root[:], k.id[:])
		for name, b := range k.files(c.t) {
			c.nomad[name] = b
			c.disk.Plant(name, 0o600, b)
		}
	case 1:
		content := fmt.Appendf(nil, "no key file %d", c.points)
		c.bad = append(c.bad, content)
		c.disk.Plant(nks.FileName(keyring.KeyID{0xff, byte(c.chance.Uint32()), byte(len(c.bad))}), 0o600, content)
		c.what = "bad file"
		c.during[c.what]++
	}
}

// checkFiles wants no temporary file, and what was bad under another name.
func (c *campaign) checkFiles(when string) {
	var aside [][]byte
	for _, name := range c.disk.Names() {
		if strings.HasPrefix(name, ".tmp-") {
			c.t.Errorf("%s: %s is left", when, name)
		}
		for id := range c.gone {
			if strings.HasPrefix(name, id.String()) && c.nomad[name] == nil {
				c.t.Errorf("%s: %s is left of a key that was unlinked", when, name)
			}
		}
		if _, ok := nks.ParseFileName(name); !ok {
			aside = append(aside, c.disk.Bytes(name))
		}
	}
	unchanged(c.t, c.disk, c.nomad, when)
	for _, content := range c.bad {
		if !slices.ContainsFunc(aside, func(b []byte) bool { return bytes.Equal(b, content) }) {
			c.t.Errorf("%s: a bad file is not set aside: %q", when, content)
		}
	}
}

// errBroken is a KMS that wraps, and can't open what it wrapped.
var errBroken = errors.New("permission denied")

// TestRewrapWritesNothingThatWouldNotOpen: the new KEK may wrap and not unwrap.
func TestRewrapWritesNothingThatWouldNotOpen(t *testing.T) {
	disk, a, b := keyringtest.NewDisk(), newKMS("a"), newKMS("b")
	plantKey(t, disk, keyring.KeyID{1}, a)
	before := fmt.Sprint(keyFiles(disk))
	s := openStore(t, disk, []keyring.KEK{b}, []keyring.KEK{a})
	b.Set(func(k *kms) { k.NoUnwrap = errBroken })
	if err := s.Rewrap(t.Context()); !errors.Is(err, errBroken) || s.OnOldKEKs() != 1 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("the file was replaced by one that nothing opens")
	}
	b.Set(answers)
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	s.Close()
	s = openStore(t, disk, []keyring.KEK{b}, nil)
	if !s.Confirm(keyring.KeyID{1}) {
		t.Error("the key does not open under the new KEK alone")
	}
}

// TestWrongKEKLeavesFilesAlone: one by the right name that is another KEK.
func TestWrongKEKLeavesFilesAlone(t *testing.T) {
	disk, right := keyringtest.NewDisk(), newKMS("kms")
	right.Inner = fileKEK(t, countingKey())
	plantKey(t, disk, keyring.KeyID{1}, right)
	before := fmt.Sprint(keyFiles(disk))
	wrong := newKMS("kms")
	wrong.Inner = fileKEK(t, bytes.Repeat([]byte{7}, 32))
	s := openStore(t, disk, []keyring.KEK{wrong}, nil)
	if err := s.Rewrap(t.Context()); err == nil || s.OnOldKEKs() != 1 || len(s.SetAside()) > 0 {
		t.Errorf("rewrap: %v, %d left, set aside %v", err, s.OnOldKEKs(), s.SetAside())
	}
	s.Close()
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("a file was touched")
	}

	// Where both are configured, the old one by the same name, the file moves.
	s = openStore(t, disk, []keyring.KEK{wrong}, []keyring.KEK{right})
	if s.OnOldKEKs() != 1 {
		t.Errorf("%d files on the old KEK of the same name", s.OnOldKEKs())
	}
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	s.Close()
	s = openStore(t, disk, []keyring.KEK{wrong}, nil)
	if !s.Confirm(keyring.KeyID{1}) {
		t.Error("the key does not open under the new KEK alone")
	}
}

// TestRewrapGoesOnWhereItEnded, in the same process or in the next one, and whoever opens the
// keystore meanwhile has every key.
func TestRewrapGoesOnWhereItEnded(t *testing.T) {
	const files = 200
	disk, a, b := keyringtest.NewDisk(), newKMS("a"), &shortLived{KEK: newKMS("b")}
	for i := range files {
		plantKey(t, disk, keyring.KeyID{byte(i)}, a)
	}
	left := files
	for _, part := range []int{30, 100, files} {
		ctx, cancel := context.WithCancel(t.Context())
		b.wraps.Store(0)
		b.most, b.end = int64(part), cancel
		s := openStore(t, disk, []keyring.KEK{b}, []keyring.KEK{a})
		if n := s.OnOldKEKs(); n != left {
			t.Errorf("%d files on the old KEK, %d were left", n, left)
		}
		most := int64(min(part+atOnce, left)) // it may have been asked for more when it ends
		err := s.Rewrap(ctx)
		left = s.OnOldKEKs()
		if done := part == files; done != (err == nil) || done != (left == 0) || b.wraps.Load() > most {
			t.Errorf("up to %d: %v, %d left, %d wrapped", part, err, left, b.wraps.Load())
		}
		for i := range files {
			if !s.Confirm(keyring.KeyID{byte(i)}) {
				t.Errorf("up to %d: key %d is not held", part, i)
			}
		}
		s.Close()
	}
	s := openStore(t, disk, []keyring.KEK{b}, nil)
	for i := range files {
		if !s.Confirm(keyring.KeyID{byte(i)}) {
			t.Errorf("key %d does not open under the new KEK alone", i)
		}
	}
}

// shortLived is a KEK at which the caller loses patience.
type shortLived struct {
	keyring.KEK
	wraps atomic.Int64
	most  int64
	end   func()
}

func (k *shortLived) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if string(plaintext) != "probe" && k.wraps.Add(1) > k.most {
		k.end()
		return nil, ctx.Err()
	}
	return k.KEK.Wrap(ctx, plaintext, aad)
}

// TestTemporaryFileThatStaysStopsNoStart: on a disk that is full or fails, even removing may
// not work.
func TestTemporaryFileThatStaysStopsNoStart(t *testing.T) {
	for _, kind := range []string{"lstat", "remove"} {
		disk, kek := keyringtest.NewDisk(), keyring.InlineKEK()
		plantKey(t, disk, keyring.KeyID{1}, kek)
		disk.Plant(".tmp-000102030405060708090a0b0c0d0e0f", 0o600, nil)
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == kind && strings.HasPrefix(op.Name, ".tmp-") {
				return keyringtest.Fault{Err: syscall.ENOSPC}
			}
			return keyringtest.Fault{}
		})
		if s := openStore(t, disk, []keyring.KEK{kek}, nil); !s.Confirm(keyring.KeyID{1}) {
			t.Errorf("%s: the key is not held", kind)
		}
	}
}

func openStore(t *testing.T, disk *keyringtest.Disk, keks, old []keyring.KEK) keyring.Store {
	t.Helper()
	fsys, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	s, err := keyring.OpenStore(t.Context(), fsys, keks, old)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
