package keyring_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

// addNewer adds keys that only a newer build can use, and has two servers report that they hold them: one of another
// cipher suite, and one of another signing algorithm.
func addNewer(t *testing.T, c *keyringtest.Cluster) (suite, algorithm keyringtest.Outsider) {
	t.Helper()
	suite, algorithm = keyringtest.NewOutsider(t, "EdDSA", 1), keyringtest.NewOutsider(t, "EdDSA", 2)
	s, a := suite.NewKey(t), algorithm.NewKey(t)
	s.Suite, a.Algorithm, a.Public = "some-suite", "ML-DSA-65", bytes.Repeat([]byte{0x30}, 1974)
	keyringtest.MustPropose(t, c, meta.Command{Add: &meta.Add{Key: s}}, meta.Command{Add: &meta.Add{Key: a}})
	return suite, algorithm
}

// activateNewer has a key become active by the word of all servers, as a leader of a newer build may.
func activateNewer(t *testing.T, c *keyringtest.Cluster, id keyring.KeyID) {
	t.Helper()
	ring := keyring.Ring(c.Leader().FSM)
	var cmds []meta.Command
	activate := meta.Activate{ID: meta.KeyID(id), Time: time.Now().UTC()}
	for _, s := range ring.Servers {
		cmds = append(cmds, meta.Command{Hold: &meta.Hold{Server: s.ID, Keystore: s.Keystore, Gained: []meta.KeyID{meta.KeyID(id)}}})
		activate.Voters, activate.Confirmed = append(activate.Voters, s.ID), append(activate.Confirmed, s)
	}
	keyringtest.MustPropose(t, c, append(cmds, meta.Command{Activate: &activate})...)
}

// TestKeysOfNewerBuildsAreCarried: while they wait for a newer build, all else goes on, and Status says what they are.
func TestKeysOfNewerBuildsAreCarried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, nil)
		leader := keyringtest.Ready(t, c)
		suite, algorithm := addNewer(t, c)
		time.Sleep(2 * time.Minute) // virtual
		for _, k := range leader.Keyring.Keys() {
			if newer := k.ID == suite.ID || k.ID == algorithm.ID; newer && (k.State != keyring.StatePrepublished || len(k.Holders) > 0) {
				t.Errorf("key %s is %s, and held by %q", k.ID, k.State, k.Holders)
			}
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Error(err)
		}
		keyringtest.AwaitRing(t, c)
		keyringtest.CheckVerifies(t, c, keyringtest.Sign(t, leader), true, "a key of this build")
		keyringtest.CheckPublished(t, c, suite.ID, true, "another suite")
		keyringtest.CheckPublished(t, c, algorithm.ID, false, "another algorithm")
		keyringtest.CheckVerifies(t, c, suite.TokenFor(time.Hour), true, "another suite")
		for _, s := range c.Live() {
			err := s.Keyring.Verify(algorithm.TokenFor(time.Hour), keyringtest.ForMe)
			if !errors.Is(err, keyring.ErrToken) || !errors.Is(err, keyring.ErrUnknownKey) || !strings.Contains(err.Error(), "ML-DSA-65") {
				t.Errorf("%s: %v", s.ID, err)
			}
			checkNewerProblem(t, s, keyring.SeverityWarning, suite.ID, algorithm.ID)
		}
	})
}

// TestActiveKeyOfANewerBuildSealsNothingHere, and what is sealed under the others opens. An operator's Rotate ends that.
func TestActiveKeyOfANewerBuildSealsNothingHere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewSigning(t, 3, nil)
		leader := keyringtest.Ready(t, c)
		before, err := leader.Keyring.Encrypt([]byte("text"), nil)
		if err != nil {
			t.Fatal(err)
		}
		suite, _ := addNewer(t, c)
		activateNewer(t, c, suite.ID)
		if _, err := leader.Keyring.Encrypt([]byte("text"), nil); !errors.Is(err, keyring.ErrNotReady) || !strings.Contains(err.Error(), "some-suite") {
			t.Errorf("encrypt: %v", err)
		}
		if _, err := leader.Keyring.Sign(keyringtest.ClaimsForMe()); !errors.Is(err, keyring.ErrNotReady) {
			t.Errorf("sign: %v", err)
		}
		under := slices.Concat(before[:1], suite.ID[:], before[17:])
		for _, s := range c.Live() {
			if got, err := s.Keyring.Decrypt(before, nil); err != nil || string(got) != "text" {
				t.Errorf("%s: %q, %v", s.ID, got, err)
			}
			if _, err := s.Keyring.Decrypt(under, nil); !errors.Is(err, keyring.ErrNotReady) || !strings.Contains(err.Error(), "some-suite") {
				t.Errorf("%s: decrypt: %v", s.ID, err)
			}
			checkNewerProblem(t, s, keyring.SeverityCritical, suite.ID)
		}
		if _, err := c.Leader().Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leader().Keyring.Encrypt([]byte("text"), nil); err != nil {
			t.Error(err)
		}
	})
}

func checkNewerProblem(t *testing.T, s *keyringtest.Server, severity keyring.Severity, ids ...keyring.KeyID) {
	t.Helper()
	st, err := s.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemNewer })
	if i < 0 {
		t.Fatalf("%s: %v", s.ID, st.Problems)
	}
	p := st.Problems[i]
	if p.Severity != severity || !strings.Contains(p.Detail, "some-suite") || slices.ContainsFunc(ids, func(id keyring.KeyID) bool { return !slices.Contains(p.Keys, id) }) {
		t.Errorf("%s: %+v", s.ID, p)
	}
}
