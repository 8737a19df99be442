package meta_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
)

// tokens are the numbers of the ring's join tokens.
func tokens(r *meta.Ring) (all []byte) {
	for _, t := range r.JoinTokens {
		all = append(all, t.ID[15])
	}
	return all
}

// TestJoinTokensEnd: what may give a thief the secret of a token, or takes away the key that it is
// sealed with, ends it; and nothing else does.
func TestJoinTokensEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(h *history)
		left string
	}{
		{"nothing", func(*history) {}, "\x01\x02"},
		{"a plain rotation", func(h *history) { h.rotate(3) }, "\x01\x02"},
		{"a hold, and a server forgotten", func(h *history) {
			h.do(hold("b", 2, []int{1}, nil), meta.Command{Forget: &meta.Forget{Servers: []string{"c"}}})
		}, "\x01\x02"},
		{"a full rotation that waits", func(h *history) { h.prepublish(3, full) }, "\x01\x02"},
		{"a full rotation", func(h *history) { h.rotate(3, full) }, ""},
		{"a key revoked", func(h *history) { h.rotate(3, revoke(1)) }, ""},
		{"its key's data is moved", func(h *history) { h.do(meta.Command{Rekey: &meta.Rekey{ID: id(1)}}) }, "\x02"},
		{"its key is removed", func(h *history) { h.do(remove(1, meta.StateInactive, true)) }, "\x02"},
		{"its own end", func(h *history) { h.do(endTokens(2, 9)) }, "\x01"},
		{"the end of all", func(h *history) { h.do(meta.Command{EndJoinTokens: &meta.EndJoinTokens{All: true}}) }, ""},
	} {
		h := begin(t)
		h.rotate(1)
		h.do(addJoinToken(1, 1))
		h.rotate(2)
		h.do(addJoinToken(2, 2), useJoinToken(2, 1))
		tt.then(h)
		if got := string(tokens(h.ring)); got != tt.left {
			t.Errorf("%s: tokens %q are left, want %q", tt.name, got, tt.left)
		}
	}
}

func endTokens(ns ...byte) meta.Command {
	c := &meta.EndJoinTokens{}
	for _, n := range ns {
		c.IDs = append(c.IDs, meta.TokenID{15: n})
	}
	return meta.Command{EndJoinTokens: c}
}

// TestJoinTokenIsOneCertificates: the first that uses it has it, as often as it likes.
func TestJoinTokenIsOneCertificates(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.do(addJoinToken(1, 1))
	h.do(useJoinToken(1, 1))
	h.do(useJoinToken(1, 1))
	other := useJoinToken(1, 1)
	other.UseJoinToken.Server = "another"
	for want, c := range map[string]meta.Command{
		"another certificate has used it": useJoinToken(1, 2),
		"it is another server's":          other,
		"there is none":                   useJoinToken(2, 1),
	} {
		if err := h.try(c); !errors.Is(err, meta.ErrCommandRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	h.do(endTokens(1))
	if err := h.try(useJoinToken(1, 1)); !errors.Is(err, meta.ErrCommandRefused) {
		t.Errorf("after its end: %v", err)
	}
}

func TestJoinTokensAreBounded(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	for n := range meta.MaxJoinTokens {
		h.do(addJoinToken(n+1, 1))
	}
	used := addJoinToken(100, 1)
	used.AddJoinToken.Token.User = meta.Digest{1}
	for want, c := range map[string]meta.Command{
		"there are 64 already":     addJoinToken(101, 1),
		"there is one of that ID":  addJoinToken(1, 1),
		"key 00000000-0000-0000-0": addJoinToken(102, 2),
	} {
		if err := h.try(c); !errors.Is(err, meta.ErrCommandRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	h.do(endTokens(1))
	if err := h.try(used); !errors.Is(err, meta.ErrCommandRefused) {
		t.Errorf("a token that is used as it comes: %v", err)
	}
}

func TestMalformedJoinTokens(t *testing.T) {
	token := func(change func(*meta.JoinToken)) meta.Command {
		c := addJoinToken(1, 1)
		change(&c.AddJoinToken.Token)
		return c
	}
	nobody := useJoinToken(1, 0)
	for name, c := range map[string]meta.Command{
		"no ID":          token(func(t *meta.JoinToken) { t.ID = meta.TokenID{} }),
		"no server":      token(func(t *meta.JoinToken) { t.Server = "" }),
		"no end":         token(func(t *meta.JoinToken) { t.End = time.Time{} }),
		"end in a zone":  token(func(t *meta.JoinToken) { t.End = at(1).In(time.FixedZone("CET", 3600)) }),
		"no key":         token(func(t *meta.JoinToken) { t.Key = meta.KeyID{} }),
		"no secret":      token(func(t *meta.JoinToken) { t.Sealed = nil }),
		"used by nobody": nobody,
		"end of nothing": {EndJoinTokens: &meta.EndJoinTokens{}},
		"end of all and": {EndJoinTokens: &meta.EndJoinTokens{All: true, IDs: []meta.TokenID{{1}}}},
	} {
		if b, err := encodeEntry(c); err == nil {
			t.Errorf("%s: Encode = %s", name, b)
		}
	}
}

func TestCheckRefusesImpossibleJoinTokens(t *testing.T) {
	snap := encode(t, recent(t))
	for name, spoil := range map[string]func(r *meta.Ring){
		"out of order":    func(r *meta.Ring) { r.JoinTokens[0], r.JoinTokens[1] = r.JoinTokens[1], r.JoinTokens[0] },
		"twice":           func(r *meta.Ring) { r.JoinTokens[1] = r.JoinTokens[0] },
		"no ID":           func(r *meta.Ring) { r.JoinTokens[0].ID = meta.TokenID{} },
		"no such key":     func(r *meta.Ring) { r.JoinTokens[0].Key = id(9) },
		"of a moving key": func(r *meta.Ring) { r.Key(id(1)).State = meta.StateRekeying },
		"of a revoked":    func(r *meta.Ring) { r.Key(id(1)).Revoked = true },
		"secret too long": func(r *meta.Ring) { r.JoinTokens[0].Sealed = make([]byte, 100) },
		"too many":        func(r *meta.Ring) { r.JoinTokens = make([]meta.JoinToken, meta.MaxJoinTokens+1) },
	} {
		r := must(meta.Decode(snap))
		spoil(r)
		if r.Check() == nil {
			t.Errorf("%s: Check accepts it", name)
		}
		if got, err := meta.Decode(encode(t, r)); !errors.Is(err, meta.ErrMalformed) {
			t.Errorf("%s: Decode = %v, %v", name, got, err)
		}
	}
	for name, change := range map[string]func(r *meta.Ring){
		"other server": func(r *meta.Ring) { r.JoinTokens[0].Server = "x" },
		"later end":    func(r *meta.Ring) { r.JoinTokens[0].End = at(99) },
		"other secret": func(r *meta.Ring) { r.JoinTokens[0].Sealed[0]++ },
		"other user":   func(r *meta.Ring) { r.JoinTokens[1].User[0]++ },
	} {
		before, next := must(meta.Decode(snap)), must(meta.Decode(snap))
		change(next)
		if before.CheckStep(next) == nil {
			t.Errorf("%s: CheckStep accepts it", name)
		}
	}
}
