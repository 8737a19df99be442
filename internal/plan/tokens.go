package plan

import (
	"time"

	"example.com/keyring/internal/meta"
)

// Tokens is the token policy with every default filled in.
type Tokens struct {
	MaxTTL time.Duration // of the longest token
	Leeway time.Duration // by which the clocks of signers and verifiers may differ
}

// endOfTime is later than every time that is waited for.
var endOfTime = time.Unix(1<<40, 0)

// VerifiesUntil is when the key's public key leaves the JWKS and its tokens no longer verify: zero for a key that has no
// tokens, far in the future for one that may still sign.
//
// It uses the ring's times as they are, even if a clock that was ahead wrote them: that clock may have signed too.
//
// A prepublished key has signed nothing that this server knows of. Its tokens verify all the same, because the key
// may already be active where this server has not heard of it yet. A key that was active can have signed until it was
// retired. The state of its data makes no difference.
func VerifiesUntil(k *meta.Key, t Tokens) time.Time {
	switch {
	case k.Revoked || k.DataOnly:
		return time.Time{}
	case k.Retired.IsZero():
		return endOfTime
	}
	return k.Retired.Add(t.MaxTTL).Add(t.Leeway)
}

// MaxAge is for how long verifiers may cache the JWKS of a server that has not heard from a leader for silence: its JWKS
// may be that old already. ok is false if the server must not show its JWKS, because a majority elsewhere may have
// begun to sign with a key that it has not heard of, or because of Stale: a key that was revoked meanwhile must not
// be shown for ever.
func MaxAge(r *meta.Ring, p Policy, silence time.Duration) (age time.Duration, ok bool) {
	age, stale := Settle, Stale
	if p.Lead > 0 {
		age, stale = min(p.Lead, Settle), min(p.Lead, Stale)
	}
	if silence > stale {
		return 0, false
	}
	if r.Active() == nil { // the first key signs as soon as it is there
		return 0, true
	}
	return max(0, age-silence), true
}

// Stale is how long after it last heard from a leader a server still shows its JWKS. While most servers are down no key
// can be revoked or activated, and the JWKS would still be right; but a server can't tell that from being cut off.
const Stale = time.Hour
