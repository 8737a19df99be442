package jwt_test

import (
	"testing"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
)

const (
	kid     = "0270c60e-23bb-b8a1-f229-4f54ad2664c3"
	another = "00112233-4455-6677-8899-aabbccddeeff"
)

// pair is a key pair of someone else's, under kid.
type pair struct{ keyringtest.Pair }

func pairs(t testing.TB) map[string]pair {
	all := map[string]pair{}
	for _, alg := range jwt.Algorithms() {
		all[alg] = pair{keyringtest.NewPair(t, alg)}
	}
	return all
}

// written is the header as the keyring writes it.
func (p pair) written() string { return p.Header(kid) }

func (p pair) key(t testing.TB) *jwt.Key {
	t.Helper()
	k, err := jwt.NewKey(kid, p.Algorithm, p.Public(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// keys are those of a test.
type keys map[string]*jwt.Key

func (k keys) WithHeader(encoded string) *jwt.Key {
	for _, key := range k {
		if key.Header() == encoded {
			return key
		}
	}
	return nil
}

func (k keys) WithID(id string) (*jwt.Key, error) {
	if key := k[id]; key != nil {
		return key, nil
	}
	return nil, jwt.ErrUnknownKey
}
