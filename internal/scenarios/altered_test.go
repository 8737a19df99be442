package scenarios_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// saidOf returns the problem of that kind in a status, or nil.
func saidOf(st keyring.Status, kind keyring.ProblemKind) *keyring.Problem {
	if i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == kind }); i >= 0 {
		return &st.Problems[i]
	}
	return nil
}

// TestEscrowThatWasTakenOutIsBack: somebody takes the entry of escrow out of a key file while the server is down. Status says
// so until the copy is deleted, and the escrow opens the file again.
func TestEscrowThatWasTakenOutIsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		identity := kektest.Identity(t)
		own, escrow := kektest.File(t, kektest.CountingKey()), kektest.Age(t, identity)
		l := newLone(t, own, escrow)
		sealed := l.seal("data")
		id, _ := keyring.CiphertextKeyID(sealed)
		name := nks.FileName(id)
		l.Cluster.Stop(l.Server)
		f, err := nks.DecodeFile(l.Disk.Bytes(name))
		if err != nil {
			t.Fatal(err)
		}
		f.Wrapped = f.Wrapped[:1]
		altered, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		l.Disk.Plant(name, 0o600, altered)
		l.Cluster.Start(l.Server)
		l.opens(sealed)
		time.Sleep(2 * time.Minute)
		p := saidOf(l.status(), keyring.ProblemAltered)
		if p == nil || !slices.Equal(p.Keys, []keyring.KeyID{id}) || !strings.Contains(p.Detail, own.ID()) || strings.Contains(p.Detail, escrow.ID()) {
			t.Fatalf("%+v", l.status().Problems)
		}
		l.Disk.Unlink(name + ".altered-1")
		time.Sleep(2 * time.Minute)
		if p := saidOf(l.status(), keyring.ProblemAltered); p != nil || l.status().OnOldKEKs > 0 {
			t.Errorf("when the copy is deleted: %v, %d on old KEKs", p, l.status().OnOldKEKs)
		}
		l.old = []keyring.KEK{kektest.Age(t, identity, identity)}
		l.restart(kektest.New("new"))
		l.opens(sealed)
	})
}

// TestOrphanThatAnybodyMayHaveMadeWaitsForAdopt: age says nothing about who wrote a file, and the recipients are no secret.
func TestOrphanThatAnybodyMayHaveMadeWaitsForAdopt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		identity := kektest.Identity(t)
		own, escrow, back := kektest.File(t, kektest.CountingKey()), kektest.Age(t, identity), kektest.Age(t, identity, identity)
		planted, proven := keyring.KeyID{1}, keyring.KeyID{2}
		forged, _ := keyringtest.NewKeyFile(t, planted, escrow)
		good, _ := keyringtest.NewKeyFile(t, proven, own, escrow)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			if s.Disk.Bytes("keystore.id") == nil {
				s.Disk.Plant(nks.FileName(planted), 0o600, forged)
				s.Disk.Plant(nks.FileName(proven), 0o600, good)
			}
			cfg.KEKs, cfg.OldKEKs = []keyring.KEK{own}, []keyring.KEK{back}
		}})
		leader := keyringtest.Ready(t, c)
		time.Sleep(2 * time.Minute)
		if ring := keyringtest.Ring(leader.FSM); ring.Key(meta.KeyID(planted)) != nil || ring.Key(meta.KeyID(proven)) == nil {
			t.Fatalf("adopted: the planted one %t, the other %t", ring.Key(meta.KeyID(planted)) != nil, ring.Key(meta.KeyID(proven)) != nil)
		}
		for _, s := range c.Servers {
			st, err := s.Keyring.Status(t.Context())
			p := saidOf(st, keyring.ProblemOrphan)
			if err != nil || p == nil || !slices.Equal(p.Keys, []keyring.KeyID{planted}) || !strings.Contains(p.Detail, "only Adopt adopts it") {
				t.Errorf("%s: %+v, %v", s.ID, st.Problems, err)
			}
			if err := s.Keyring.Rewrap(t.Context()); err == nil || !strings.Contains(err.Error(), "adopt the key first") {
				t.Errorf("%s: rewrapped: %v", s.ID, err)
			}
		}
		if err := leader.Keyring.Adopt(t.Context(), planted); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitHolders(leader.Keyring, planted, 3)
		for _, s := range c.Servers {
			if err := s.Keyring.Rewrap(t.Context()); err != nil {
				t.Errorf("%s: after Adopt: %v", s.ID, err)
			}
		}
	})
}
