package meta_test

import (
	"errors"
	"slices"
	"testing"

	"example.com/keyring/internal/meta"
)

// TestNonvotersAreRecordedUntilSomebodyEndsThat: neither a new keystore nor what the ring forgets of a server does.
func TestNonvotersAreRecordedUntilSomebodyEndsThat(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	want := func(what string, servers ...string) {
		t.Helper()
		for _, s := range []string{"a", "b", "c", "d"} {
			if got := h.ring.IsNonvoter(s); got != slices.Contains(servers, s) {
				t.Errorf("%s: %s is a permanent non-voter: %t", what, s, got)
			}
		}
	}
	want("at first")
	h.do(nonvoter("c"))
	h.do(nonvoter("a"), nonvoter("c"))
	want("recorded, one of them twice", "a", "c")
	h.do(hold("a", 3, []int{1}, nil), meta.Command{Forget: &meta.Forget{Servers: []string{"a", "c"}}})
	want("its keystore has changed, and was forgotten", "a", "c")
	h.do(votes("a"), votes("b"))
	want("ended", "c")
	h.do(votes("c"))
	want("all ended")
	if got, snap := must(meta.Decode(encode(t, h.ring))), encode(t, h.ring); string(encode(t, got)) != string(snap) {
		t.Errorf("%s reads back as %s", snap, encode(t, got))
	}
	h = &history{tb: t, ring: &meta.Ring{}}
	h.refused(meta.ErrCommandRefused, nonvoter("a")) // before the cluster has its ID
}

// TestNonvotersGoToNoOtherCluster with the keys that do.
func TestNonvotersGoToNoOtherCluster(t *testing.T) {
	if r := withNonvoters(t).DataOnly(meta.ClusterID{2}, at(9)); len(r.Nonvoters) > 0 {
		t.Errorf("%q go with the keys", r.Nonvoters)
	}
}

func TestCheckRefusesImpossibleNonvoters(t *testing.T) {
	for name, servers := range map[string][]string{
		"out of order": {"b", "a"}, "twice": {"a", "a"}, "empty": {""},
	} {
		r := must(meta.Decode(encode(t, withNonvoters(t))))
		r.Nonvoters = servers
		if r.Check() == nil {
			t.Errorf("%s: Check accepts it", name)
		}
		if got, err := meta.Decode(encode(t, r)); !errors.Is(err, meta.ErrMalformed) {
			t.Errorf("%s: Decode = %v, %v", name, got, err)
		}
	}
	if (&meta.Ring{Nonvoters: []string{"a"}}).Check() == nil {
		t.Error("Check accepts non-voters of no cluster")
	}
}

// TestBuildsOfVersionTwoRefuseNonvoters by their version, in an entry and in a snapshot.
func TestBuildsOfVersionTwoRefuseNonvoters(t *testing.T) {
	second := meta.Build{Version: 2, Command: meta.This.Command, Ring: meta.This.Ring}
	if _, err := second.DecodeEntry(must(encodeEntry(nonvoter("a")))); !errors.Is(err, meta.ErrVersion) {
		t.Errorf("an entry: %v", err)
	}
	if _, err := second.DecodeRing(encode(t, withNonvoters(t))); !errors.Is(err, meta.ErrVersion) {
		t.Errorf("a snapshot: %v", err)
	}
}
