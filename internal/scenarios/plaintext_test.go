package scenarios_test

import (
	"bytes"
	"context"
	"iter"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// rows is a database of the host's: some rows are in the clear, and it counts some that are not there.
type rows struct {
	mu        sync.Mutex // guards below
	all       map[string]keyring.Sealed
	uncounted int
	scans     int // for what is in the clear
}

func (d *rows) change(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
}

// look returns the rows as they are, and how often the keyring has looked for what is in the clear.
func (d *rows) look() (all map[string]keyring.Sealed, scans int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.all), d.scans
}

func (d *rows) Under(_ context.Context, key keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		all, _ := d.look()
		if key == (keyring.KeyID{}) {
			d.change(func() { d.scans++ })
		}
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func (d *rows) Replace(_ context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range batch {
		if !bytes.Equal(d.all[r.Ref].Ciphertext, r.Ciphertext) {
			conflicts++
			continue
		}
		d.all[r.Ref] = keyring.Sealed{Ref: r.Ref, Ciphertext: bytes.Clone(r.New), AAD: r.AAD}
	}
	return conflicts, nil
}

func (d *rows) Count(_ context.Context, key keyring.KeyID) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.all {
		id, err := keyring.CiphertextKeyID(s.Ciphertext)
		if s.Plain && key == (keyring.KeyID{}) || !s.Plain && err == nil && id == key {
			n++
		}
	}
	if key == (keyring.KeyID{}) {
		n += d.uncounted
	}
	return n, nil
}

// newRows has 1000 rows in the clear, and one that is neither sealed nor said to be in the clear.
func newRows() *rows {
	d := &rows{all: map[string]keyring.Sealed{"broken": {Ref: "broken", Ciphertext: []byte("no ciphertext")}}}
	for i := range 1000 {
		name := "row " + strings.Repeat("x", i%7) + time.Duration(i).String()
		d.all[name] = keyring.Sealed{Ref: name, Ciphertext: []byte("secret of " + name), AAD: []byte(name), Plain: true}
	}
	return d
}

// TestRecordsInTheClearAreSealed once there is a key, and what is not said to be in the clear is left alone. The host's plaintexts
// are not overwritten.
func TestRecordsInTheClearAreSealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newRows()
		before, _ := d.look()
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Data = -1, d
		}})
		leader := keyringtest.Ready(t, c)
		time.Sleep(time.Minute) // virtual
		all, scans := d.look()
		for name, s := range all {
			want := "secret of " + name
			if name == "broken" {
				if string(s.Ciphertext) != "no ciphertext" {
					t.Errorf("what is no ciphertext has become %q", s.Ciphertext)
				}
				continue
			}
			if got, err := leader.Keyring.Decrypt(s.Ciphertext, s.AAD); err != nil || string(got) != want || string(before[name].Ciphertext) != want {
				t.Fatalf("%s: %q, and was %q, %v", name, got, before[name].Ciphertext, err)
			}
		}
		if st := keyringtest.StatusOf(t, leader); len(st.Rekeying) > 0 || scans > 10 {
			t.Errorf("%d scans, and %+v", scans, st.Rekeying)
		}
		time.Sleep(24 * time.Hour) // virtual
		if _, scans = d.look(); scans > 10 {
			t.Errorf("%d scans for what was not there", scans)
		}
	})
}

// TestRecordsThatAreOnlyCountedAreAProblem, and no reason for scans without end.
func TestRecordsThatAreOnlyCountedAreAProblem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newRows()
		d.uncounted = 3
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Data = -1, d
		}})
		leader := keyringtest.Ready(t, c)
		time.Sleep(time.Hour) // virtual
		p := keyringtest.Problems(t, leader, keyring.ProblemRekey)
		if len(p) != 1 || len(p[0].Keys) > 0 || !strings.Contains(p[0].Detail, "counts 3 records in the clear, but yields none") {
			t.Errorf("%+v", p)
		}
		if _, scans := d.look(); scans > 200 {
			t.Errorf("%d scans in an hour", scans)
		}
		d.change(func() { d.uncounted = 0 })
		time.Sleep(2 * time.Minute) // virtual
		if p := keyringtest.Problems(t, leader, keyring.ProblemRekey); len(p) > 0 {
			t.Errorf("nothing is in the clear, and Status says %+v", p)
		}
	})
}
