package meta_test

import (
	"slices"
	"testing"

	"example.com/keyring/internal/meta"
)

func compromised(a *meta.Add) { a.Full, a.Compromised = true, true }

// TestCompromisedEndsEveryOtherKey, in whichever state it is when the new one becomes active, and nothing before.
func TestCompromisedEndsEveryOtherKey(t *testing.T) {
	h := begin(t)
	h.do(adopt(7, true))
	h.rotate(1)
	h.rotate(2, full)
	h.deprecate(1)
	h.deprecate(7)
	h.do(adopt(8, false))
	h.rotate(3)
	h.rotate(4)
	h.do(meta.Command{Rekey: &meta.Rekey{ID: id(3)}})
	h.prepublish(5)
	before := h.ring
	h.prepublish(6, compromised)
	h.prepublish(9, full)
	for _, k := range before.Keys {
		if now := h.ring.Key(k.ID); now.State != k.State || now.Revoked || now.Remove {
			t.Errorf("before its time: %+v", now)
		}
	}
	before = h.ring
	h.do(activate(6, "abc", "ab"))
	for n, want := range map[int]string{
		1: "deprecated", 7: "deprecated", 2: "rekeying", 3: "rekeying", 4: "rekeying", 8: "rekeying",
		5: "tombstone", 9: "tombstone", 6: "active",
	} {
		h.wantState(n, want)
		if k := h.ring.Key(id(n)); k != nil && n != 6 && !(k.Revoked && k.Remove) {
			t.Errorf("it is of use yet: %+v", k)
		}
	}
	if k := h.ring.Active(); k.Revoked || k.Remove || k.Compromised {
		t.Errorf("the new key: %+v", k)
	}
	for _, s := range []meta.StepKind{meta.StepRevoked, meta.StepRemoveAsked} {
		if steps := meta.Steps(before, h.ring); !slices.Contains(steps, meta.Step{Kind: s, Key: id(8)}) {
			t.Errorf("no step says %s: %v", s, steps)
		}
	}
	h.rotate(10) // is like any other
	h.wantState(6, "inactive")
}

// TestKeyThatOutlivesACompromiseCannotBe, nor one of which it is not asked that all data moves.
func TestKeyThatOutlivesACompromiseCannotBe(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.prepublish(2, compromised)
	before := h.ring
	h.do(activate(2, "abc", "ab"))
	for what, spoil := range map[string]func(*meta.Key){
		"not revoked":       func(k *meta.Key) { k.Revoked = false },
		"not to be removed": func(k *meta.Key) { k.Remove = false },
	} {
		spoilt, key := *h.ring, *h.ring.Key(id(1))
		spoil(&key)
		spoilt.Keys = []*meta.Key{&key, h.ring.Key(id(2))}
		if err := before.CheckStep(&spoilt); err == nil {
			t.Errorf("an older key that is %s", what)
		}
	}
	key := *h.ring.Key(id(2))
	key.Compromised = true
	spoilt := *h.ring
	spoilt.Keys = []*meta.Key{h.ring.Key(id(1)), &key}
	if err := spoilt.Check(); err == nil {
		t.Error("an active key after which others are to go")
	}
	for _, add := range []meta.Add{
		{Key: newKey(3), Compromised: true},
		{Key: newKey(3), Full: true, Compromised: true, Revoke: ids(1)},
	} {
		if _, err := encodeEntry(meta.Command{Add: &add}); err == nil {
			t.Errorf("%+v", add)
		}
	}
	steps := meta.Steps(&meta.Ring{}, before)
	if !slices.Contains(steps, meta.Step{Kind: meta.StepCompromised, Key: id(2)}) {
		t.Errorf("nobody hears of it: %v", steps)
	}
}
