package kek_test

import (
	"errors"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"filippo.io/age"
)

func TestAgeKEKRefuses(t *testing.T) {
	scrypt, err := age.NewScryptRecipient("passphrase")
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string][]age.Recipient{
		"no recipients": {}, "a passphrase": {scrypt}, "a recipient without a name": {nameless{}},
	} {
		if k, err := kek.Age(to); err == nil {
			t.Errorf("%s: %v", name, k)
		}
	}
	if _, err := kektest.Age(t, kektest.Identity(t)).Unwrap(t.Context(), nil, nil); !errors.Is(err, kek.ErrWrapOnly) {
		t.Errorf("escrow unwraps: %v", err)
	}
}

type nameless struct{ age.Recipient }

func TestAgeKEKIDIsOfTheRecipientsInAnyOrder(t *testing.T) {
	a, b := kektest.Identity(t), kektest.Identity(t)
	id := func(with []age.Identity, to ...age.Recipient) string {
		k, err := kek.Age(to, with...)
		if err != nil {
			t.Fatal(err)
		}
		return k.ID()
	}
	both := id(nil, a.Recipient(), b.Recipient())
	if both != id([]age.Identity{b}, b.Recipient(), a.Recipient()) || both == id(nil, a.Recipient()) {
		t.Errorf("%s is not the ID of both", both)
	}
}
