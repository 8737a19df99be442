package meta_test

import (
	"strings"
	"testing"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestKeysOfNewerBuildsAreTold by their signing algorithm and their cipher suite.
func TestKeysOfNewerBuildsAreTold(t *testing.T) {
	for _, tt := range []struct{ algorithm, suite, want string }{
		{"RS256", "", ""}, {"ES256", "", ""}, {"EdDSA", "", ""},
		{"ML-DSA-65", "", "ML-DSA-65"}, {"HS256", "", "HS256"}, {"EdDSA", "some-suite", "some-suite"}, {"ML-DSA-65", "some-suite", "ML-DSA-65"},
	} {
		k := meta.Key{Algorithm: tt.algorithm, Suite: tt.suite}
		if got := k.Newer(); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

// TestAlgorithmsAreThoseOfTokensAndFiles: a key that the ring takes for usable can be made, and can sign.
func TestAlgorithmsAreThoseOfTokensAndFiles(t *testing.T) {
	for _, a := range jwt.Algorithms() {
		m, err := nks.Generate(a)
		if err != nil || !meta.KnowsAlgorithm(a) {
			t.Errorf("%s: %v", a, err)
			continue
		}
		m.Wipe()
	}
}

// TestSuiteStaysWithTheKey through activation, adoption and a restore into another cluster, and is never another one.
func TestSuiteStaysWithTheKey(t *testing.T) {
	h := begin(t)
	suited := newKey(7)
	suited.Suite = "some-suite"
	h.do(meta.Command{Adopt: &meta.Adopt{Key: suited, DataOnly: true, Time: at(9)}})
	h.rotate(1)
	h.rotate(5, func(a *meta.Add) { a.Key.Suite = "some-suite" })
	h.rotate(6)
	for n, want := range map[int]string{1: "", 5: "some-suite", 6: "", 7: "some-suite"} {
		if got := h.ring.Key(id(n)).Suite; got != want {
			t.Errorf("key %d: suite %q, want %q", n, got, want)
		}
		if got := h.ring.DataOnly(meta.ClusterID{9}, at(60)).Key(id(n)).Suite; got != want {
			t.Errorf("key %d, in another cluster: suite %q, want %q", n, got, want)
		}
	}
	other := h.ring.With(func(k *meta.Key) { k.Suite = "" })
	if err := h.ring.CheckStep(other); err == nil {
		t.Error("a key may change its suite")
	}
	if _, err := h.ring.Apply(999, []meta.Command{adopt(7, false)}); err == nil {
		t.Error("adopted with another suite")
	}
	for _, bad := range []string{strings.Repeat("x", meta.MaxSuite+1), "a b", "\x00", "ü"} {
		add := meta.Add{Key: newKey(9)}
		add.Key.Suite = bad
		if _, err := (meta.Entry{Commands: []meta.Command{{Add: &add}}}).Encode(); err == nil {
			t.Errorf("suite %q is taken", bad)
		}
	}
}
