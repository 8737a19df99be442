package scenarios_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// TestNomadKeystoreOpensAsItIs in an empty keyring: one server of three has the directory, and
// all come to open what Nomad sealed, from files of their own.
func TestNomadKeystoreOpensAsItIs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := adoptNomad(t)
		a.checkAdopted(t)
		a.checkOpens(t, "adopted")
		a.checkOwnFiles(t, "adopted")
		for _, k := range a.keys[4:] {
			if ps := keyringtest.Problems(t, a.Server("s2"), keyring.ProblemNomad); len(ps) != 1 || !slices.Contains(ps[0].Keys, keyring.KeyID(k.ID)) {
				t.Errorf("%s: %v", k.Form, ps)
			}
		}

		a.old = nil // now without the KEK that lies in Nomad's files
		for _, s := range a.Servers {
			if err := s.Keyring.Rewrap(t.Context()); err != nil {
				t.Errorf("%s: %v", s.ID, err)
			}
			a.Restart(s)
			keyringtest.Ready(t, a.Cluster)
			keyringtest.AwaitKeys(t, a.Cluster)
		}
		a.checkOpens(t, "without InlineKEK")
		a.checkOwnFiles(t, "without InlineKEK")

		for name := range a.files { // the operator has had enough of them
			a.Server("s2").Disk.Unlink(name)
		}
		a.files = nil
		a.Restart(a.Server("s2"))
		keyringtest.Ready(t, a.Cluster)
		if st, err := a.Server("s2").Keyring.Status(t.Context()); err != nil || len(st.Missing)+st.OnOldKEKs > 0 {
			t.Errorf("without Nomad's files: %v, %v", st.Problems, err)
		}
		a.checkOpens(t, "without Nomad's files")
	})
}

// nomadCluster is three servers, the second of which has a keystore of Nomad's.
type nomadCluster struct {
	*keyringtest.Cluster
	keys  []keystoretest.NomadKey
	files map[string][]byte // Nomad's
	old   []keyring.KEK     // what the servers are given as OldKEKs
}

// adoptNomad starts one, and waits until every server holds what can be opened.
func adoptNomad(t *testing.T) *nomadCluster {
	t.Helper()
	disk, keys, files := keyringtest.NomadDisk(t)
	a := &nomadCluster{keys: keys, files: files, old: []keyring.KEK{keyring.InlineKEK()}}
	kek := kektest.File(t, kektest.CountingKey())
	a.Cluster = keyringtest.NewCluster(t, keyringtest.Options{
		Servers: 3,
		Disk: func(id raft.ServerID) *keyringtest.Disk {
			if id == "s2" {
				return disk
			}
			return keyringtest.NewDisk()
		},
		Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.KEKs, cfg.OldKEKs = []keyring.KEK{kek}, a.old },
	})
	keyringtest.Ready(t, a.Cluster)
	time.Sleep(time.Minute)
	keyringtest.AwaitKeys(t, a.Cluster)
	return a
}

// checkAdopted wants the keys that can be opened to be in the ring, for data only until the operator adopts them.
func (a *nomadCluster) checkAdopted(t *testing.T) {
	t.Helper()
	leader := a.Leader()
	for _, k := range a.keys[:4] {
		key := keyringtest.Ring(leader.FSM).Key(k.ID)
		if key == nil || key.State != meta.StateInactive || !key.DataOnly || len(key.Holders) != 3 {
			t.Fatalf("%s is adopted as %+v", k.Form, key)
		}
		if err := leader.Keyring.Adopt(t.Context(), keyring.KeyID(k.ID)); err != nil {
			t.Error(err)
		}
		if want := map[bool]string{true: "RS256", false: "EdDSA"}[k.RSA != nil]; key.Algorithm != want {
			t.Errorf("%s signs with %s", k.Form, key.Algorithm)
		}
	}
}

// checkOpens wants every server to open what Nomad sealed.
func (a *nomadCluster) checkOpens(t *testing.T, when string) {
	t.Helper()
	for _, s := range a.Servers {
		for _, k := range a.keys[:4] {
			if got, err := s.Keyring.OpenNomad(keyring.KeyID(k.ID), k.Seal("data")); err != nil || string(got) != "data" {
				t.Errorf("%s: %s, %s: %q, %v", when, s.ID, k.Form, got, err)
			}
		}
	}
	keyringtest.CheckUnchanged(t, a.Server("s2").Disk, a.files, when)
}

// checkOwnFiles wants a file of the keyring's beside each of Nomad's.
func (a *nomadCluster) checkOwnFiles(t *testing.T, when string) {
	t.Helper()
	own := a.Server("s2").Disk.Names()
	for _, k := range a.keys[:4] {
		name := nks.FileName(k.ID)
		if a.files[name] != nil {
			name = nks.BesideName(k.ID)
		}
		if !slices.Contains(own, name) {
			t.Errorf("%s: %s: there is no file of the keyring's: %v", when, k.Form, own)
		}
	}
}

// TestNomadFilesAreOpenedOnlyWithInlineKEK: a planted one is no way around the KEKs. The key
// then comes from a peer.
func TestNomadFilesAreOpenedOnlyWithInlineKEK(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, keys, files := keyringtest.NomadDisk(t)
		second, third := keyringtest.NewDisk(), keyringtest.NewDisk()
		for name, b := range files {
			second.Plant(name, 0o600, b)
			third.Plant(name, 0o600, b)
		}
		kek := kektest.File(t, kektest.CountingKey())
		c := keyringtest.NewCluster(t, keyringtest.Options{
			Servers: 3,
			Disk: func(id raft.ServerID) *keyringtest.Disk {
				return map[raft.ServerID]*keyringtest.Disk{"s1": disk, "s2": second, "s3": keyringtest.NewDisk()}[id]
			},
			Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
				if cfg.KEKs = []keyring.KEK{kek}; s.ID == "s1" {
					cfg.OldKEKs = []keyring.KEK{keyring.InlineKEK()}
				}
			},
		})
		keyringtest.Ready(t, c)
		s2 := c.Server("s2")
		time.Sleep(10 * time.Minute)
		keyringtest.AwaitKeys(t, c)
		for _, k := range keys[:4] {
			if got, err := s2.Keyring.OpenNomad(keyring.KeyID(k.ID), k.Seal("data")); err != nil || string(got) != "data" {
				t.Errorf("%s: %q, %v", k.Form, got, err)
			}
		}
		keyringtest.CheckUnchanged(t, s2.Disk, files, "fetched")

		alone := keyringtest.NewCluster(t, keyringtest.Options{
			Disk: func(raft.ServerID) *keyringtest.Disk { return third },
			Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
				cfg.KEKs = []keyring.KEK{kektest.File(t, kektest.CountingKey())}
			},
		})
		s := keyringtest.Ready(t, alone)
		ps := keyringtest.Problems(t, s, keyring.ProblemNomad)
		if len(ps) != 1 || len(ps[0].Keys) != len(keys) || !strings.Contains(ps[0].Detail, "InlineKEK") || len(s.Keyring.Keys()) != 1 {
			t.Errorf("without InlineKEK anywhere: %d keys, %v", len(s.Keyring.Keys()), ps)
		}
	})
}

// TestNomadFileOfAnotherKeyIsLeftAloneAndNeverUsed: the ring knows the key by its check value.
func TestNomadFileOfAnotherKeyIsLeftAloneAndNeverUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		v := &keyringtest.Vault{TB: t}
		keyringtest.Rotate(t, c, v, 2)
		keyringtest.AwaitKeys(t, c)
		s := keyringtest.Follower(c)
		id, err := keyring.CiphertextKeyID(v.Sealed[0])
		if err != nil {
			t.Fatal(err)
		}
		planted := keystoretest.NewNomadKey(t, 1, "1.4")
		planted.ID = meta.KeyID(id)
		files := planted.Files(t)
		for name, b := range files { // over the keyring's own
			s.Disk.Plant(name, 0o600, b)
		}
		c.Restart(s)
		time.Sleep(10 * time.Minute)
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
		keyringtest.CheckUnchanged(t, s.Disk, files, "another key")
		if s.Disk.Bytes(nks.BesideName(id)) == nil {
			t.Errorf("no file beside it: %v", s.Disk.Names())
		}
		if _, err := s.Keyring.OpenNomad(id, planted.Seal("data")); !errors.Is(err, keyring.ErrDecrypt) {
			t.Errorf("opened data of the planted key: %v", err)
		}
		c.Restart(s)
		keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		v.Check(c)

		other, err := keyring.CiphertextKeyID(v.Sealed[1]) // while the server runs
		if err != nil {
			t.Fatal(err)
		}
		planted.ID = meta.KeyID(other)
		maps.Copy(files, planted.Files(t))
		for name, b := range files {
			s.Disk.Plant(name, 0o600, b)
		}
		voters := []raft.ServerID{"s1", "s2", "s3"}
		if err := c.Leader().Keyring.CheckMembers(t.Context(), voters); err != nil { // asks for the file
			t.Error(err)
		}
		time.Sleep(10 * time.Minute)
		keyringtest.AwaitKeys(t, c)
		keyringtest.CheckUnchanged(t, s.Disk, files, "while it runs")
		if s.Disk.Bytes(nks.BesideName(other)) == nil {
			t.Errorf("no file beside the other: %v", s.Disk.Names())
		}
	})
}

// TestOpenNomadRefuses what Nomad did not seal under an adopted key.
func TestOpenNomadRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, keys, _ := keyringtest.NomadDisk(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Disk: func(raft.ServerID) *keyringtest.Disk { return disk }})
		s, sealed := keyringtest.Ready(t, c), keys[0].Seal("data")
		k := s.Keyring
		time.Sleep(time.Minute)
		for i := range len(sealed) * 8 {
			flipped := slices.Clone(sealed)
			flipped[i/8] ^= 1 << (i % 8)
			if got, err := k.OpenNomad(keyring.KeyID(keys[0].ID), flipped); err != keyring.ErrDecrypt || got != nil {
				t.Errorf("bit %d flipped: %q, %v", i, got, err)
			}
		}
		for n := range len(sealed) {
			if got, err := k.OpenNomad(keyring.KeyID(keys[0].ID), sealed[:n]); err != keyring.ErrDecrypt || got != nil {
				t.Errorf("%d bytes of it: %q, %v", n, got, err)
			}
		}
		if _, err := k.OpenNomad(keyring.KeyID(keys[1].ID), sealed); err != keyring.ErrDecrypt {
			t.Errorf("another key: %v", err)
		}
		if _, err := k.OpenNomad(keyring.KeyID{1}, sealed); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("an unknown key: %v", err)
		}
		active := k.Keys()[0]
		forged := keystoretest.GCM(keyringtest.RootKey(t, s, active.ID), []byte("data"), []byte(active.ID.String()))
		if _, err := k.OpenNomad(active.ID, forged); active.State != keyring.StateActive || err != keyring.ErrDecrypt {
			t.Errorf("the key is %s and was not adopted: %v", active.State, err)
		}
	})
}
