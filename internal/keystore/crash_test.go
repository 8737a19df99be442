package keystore_test

import (
	"bytes"
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

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

var crashCount = flag.Int("crashes", 3000, "crash points of TestI8KeystoreSurvivesAnyCrash")

// TestI8KeystoreSurvivesAnyCrash lives random lives of a keystore on a simulated disk: keys
// are made, files go bad and are set aside, KEKs and their versions change and files are rewrapped, files are renewed to
// version 2, altered and written again, starts are
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
	for _, what := range []string{
		"put", "put many", "rewrap", "next version", "renew", "altered file", "remove", "unlink", "take back", "adopt", "bad file", "start", "recovery",
	} {
		if c.during[what] == 0 {
			t.Errorf("no crash during %s", what)
		}
	}
	t.Logf("%d crash points: %v", c.points, c.during)
}

// campaign is the keystore of one server over many lives.
type campaign struct {
	t       *testing.T
	chance  *rand.Rand
	disk    *keyringtest.Disk
	keks    []kek.KEK // all there ever were; the last one wraps
	needed  int       // from this one on they are configured
	held    map[meta.KeyID][32]byte
	removed map[meta.KeyID][32]byte // removed, and to be taken back if need be
	gone    map[meta.KeyID]bool     // unlinked
	nomad   map[string][]byte       // Nomad's files, which are to stay
	bad     [][]byte                // content that is to be kept in files set aside
	altered map[meta.KeyID][][]byte // content of altered files, which is to be kept too
	version map[meta.KeyID]int      // of the files of held keys: none goes back
	what    string                  // what is being done
	points  int
	during  map[string]int
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
	c.nomad, c.altered, c.version = map[string][]byte{}, map[meta.KeyID][][]byte{}, map[meta.KeyID]int{}
	c.held, c.removed, c.gone = map[meta.KeyID][32]byte{}, map[meta.KeyID][32]byte{}, map[meta.KeyID]bool{}
	c.newKEK()
}

func (c *campaign) newKEK() {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(c.chance.Uint32())
	}
	k, err := kek.FromKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.chance.IntN(2) == 0 {
		v := kektest.NewVersioned(fmt.Sprint("kms ", len(c.keks)))
		v.Inner = k
		k = v
	}
	c.keks = append(c.keks, k)
}

func (c *campaign) open() (store, error) {
	fsys, err := c.disk.Open()
	if err != nil {
		return store{}, err
	}
	last := len(c.keks) - 1
	return openOn(c.t.Context(), fsys, c.keks[last:], append(c.keks[c.needed:last:last], kek.Inline()))
}

// live does things until the crash that it arms.
func (c *campaign) live() {
	if len(c.held)+len(c.removed) > 12 || len(c.bad) > 12 || len(c.nomad) > 12 || len(c.keks) > 12 { // to stay small
		c.replace()
	}
	at, faulty := 1+c.chance.IntN(60), c.chance.IntN(3) == 0
	var ops atomic.Int64 // scans read several files at a time
	applied := c.points%2 == 0
	if faulty {
		clear(c.altered) // a key is worth more than the copy of its altered file
	}
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
	if c.chance.IntN(2) == 0 {
		s.UseFiles(2)
	}
	for range 3 {
		switch c.chance.IntN(9) {
		case 0:
			c.what = "put"
			c.put(s, 1)
		case 1:
			c.what = "put many"
			c.put(s, 3)
		case 2:
			c.what = "rewrap"
			c.rewrap(s)
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
		case 7:
			c.what = "renew"
			s.UseFiles(2)
			s.Renew(c.t.Context())
		case 8:
			c.nextVersion(s)
		}
	}
	s.Close()
}

// put makes new keys. Those that it says are held have to be held for ever.
func (c *campaign) put(s store, n int) {
	keys := map[meta.KeyID]*nks.Material{}
	for range n {
		m, err := nks.Generate("EdDSA")
		if err != nil {
			c.t.Fatal(err)
		}
		keys[meta.KeyID{byte(c.chance.Uint32()), byte(c.chance.Uint32()), byte(c.chance.Uint32())}] = m
	}
	for id, err := range s.Put(c.t.Context(), keys) {
		if err == nil {
			c.held[id] = keys[id].Check(id, "EdDSA")
		}
	}
}

// any returns one of the keys.
func (c *campaign) any(keys map[meta.KeyID][32]byte) (meta.KeyID, bool) {
	ids := slices.SortedFunc(maps.Keys(keys), func(a, b meta.KeyID) int { return bytes.Compare(a[:], b[:]) })
	if len(ids) == 0 {
		return meta.KeyID{}, false
	}
	return ids[c.chance.IntN(len(ids))], true
}

// remove removes a key in a way that can be undone, whatever comes of it.
func (c *campaign) remove(s store) {
	if id, ok := c.any(c.held); ok {
		c.removed[id] = c.held[id]
		delete(c.held, id)
		delete(c.version, id)
		s.Remove(id)
	}
}

// unlink removes one for good. If it says so, nothing may be left.
func (c *campaign) unlink(s store) {
	if id, ok := c.any(c.removed); ok {
		delete(c.removed, id)
		delete(c.altered, id)
		if s.Remove(id) == nil && s.Unlink(id) == nil {
			c.gone[id] = true
		}
	}
}

// takeBack undoes a removal. If the key is held then, it has to be held for ever.
func (c *campaign) takeBack(s store) {
	if id, ok := c.any(c.removed); ok {
		if err := s.TakeBack(c.t.Context(), id); err == nil && s.Has(id, c.removed[id]) {
			c.held[id] = c.removed[id]
			delete(c.removed, id)
		}
	}
}

// adopt makes keys of Nomad's durable that are in memory only.
func (c *campaign) adopt(s store) {
	for id, check := range s.FromNomad() {
		delete(c.removed, id)
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

// recover starts again, now and then only after another crash, and looks at everything.
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
	c.checkVersions(s, when)
	for id, check := range c.removed {
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
	switch c.chance.IntN(6) {
	case 0:
		c.newKEK()
	case 3, 4:
		c.alter()
	case 2:
		k := keystoretest.NomadKey{ID: meta.KeyID{0x4e, byte(c.chance.Uint32()), byte(len(c.nomad))}, Form: []string{"1.4", "1.9"}[c.chance.IntN(2)]}
		copy(k.Root[:], k.ID[:])
		for name, b := range k.Files(c.t) {
			c.nomad[name] = b
			c.disk.Plant(name, 0o600, b)
		}
	case 1:
		content := fmt.Appendf(nil, "no key file %d", c.points)
		c.bad = append(c.bad, content)
		c.disk.Plant(nks.FileName(meta.KeyID{0xff, byte(c.chance.Uint32()), byte(len(c.bad))}), 0o600, content)
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
	c.checkAltered(when)
	for _, content := range c.bad {
		if !slices.ContainsFunc(aside, func(b []byte) bool { return bytes.Equal(b, content) }) {
			c.t.Errorf("%s: a bad file is not set aside: %q", when, content)
		}
	}
}

// TestTemporaryFileThatStaysStopsNoStart: on a disk that is full or fails, even removing may
// not work.
func TestTemporaryFileThatStaysStopsNoStart(t *testing.T) {
	for _, kind := range []string{"lstat", "remove"} {
		disk, inline := keyringtest.NewDisk(), kek.Inline()
		plantKey(t, disk, meta.KeyID{1}, inline)
		disk.Plant(".tmp-000102030405060708090a0b0c0d0e0f", 0o600, nil)
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == kind && strings.HasPrefix(op.Name, ".tmp-") {
				return keyringtest.Fault{Err: syscall.ENOSPC}
			}
			return keyringtest.Fault{}
		})
		if s := openStore(t, disk, []kek.KEK{inline}, nil); !s.Confirm(meta.KeyID{1}) {
			t.Errorf("%s: the key is not held", kind)
		}
	}
}
