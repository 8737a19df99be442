package keyring

// Sign.

import (
	"crypto/rand"
	"errors"
	"fmt"

	"example.com/keyring/internal/jwt"
)

// Sign returns a token (a JWT) that is signed with the active key, whose ID is its kid. Its
// claims are those of all arguments: structs or maps, encoded as encoding/json does; where
// two have a claim, the later one's stays. Sign fills in iss with the policy's issuer, iat with
// the time, nbf with the time less TokenPolicy.Leeway, exp with the latest it may be, and jti with a random one, each if
// it is not there. A verifier whose clock is behind by no more than the leeway thus takes the token at once, also if it
// allows for no difference itself; only one that also refuses an iat to come has to allow for it. Name an aud, or Verify will not take the token.
//
// It is an error if exp is further away than TokenPolicy.MaxTTL, if iss is another, or if Verify
// would refuse the token for anything else in its claims. Only the leader signs: elsewhere the
// error matches ErrNotLeader. On a new leader, before the first key, or after a restore, as for
// Encrypt, it is ErrNotReady. If the public key in raft is not that of the key, nothing is signed, and the error
// matches ErrCorrupt. Sign does no I/O.
func (k *Keyring) Sign(claims ...any) (token string, err error) {
	s, err := k.active()
	if err != nil {
		return "", err
	}
	object, err := jwt.Merge(claims...)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	policy := k.cfg.Tokens
	payload, err := jwt.Complete(object, jwt.Defaults{
		Issuer: policy.Issuer, ID: rand.Text(), Now: k.now(), MaxTTL: policy.MaxTTL, Leeway: policy.Leeway,
	})
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	for {
		token, err = k.signWith(s, payload)
		if !errors.Is(err, jwt.ErrWiped) {
			return token, err
		}
		if s, err = k.lookUpSealing(); err != nil { // closed, or the key was dropped, in this moment
			return "", err
		}
	}
}

func (k *Keyring) signWith(s *sealing, payload []byte) (string, error) {
	signer, err := k.store.Signer(s.id, s.check)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	token, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	if err := s.proves(token); err != nil {
		return "", err
	}
	return token, nil
}
