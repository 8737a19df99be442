package kms_test

import (
	"context"

	"example.com/keyring"
	"example.com/keyring/kms"
	"example.com/keyring/node"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocNew(ctx context.Context, dir string, escrow keyring.KEK, use func(*node.Node)) error {
	vault := transit.NewWrapper()
	_, err := vault.SetConfig(ctx, transit.WithAddress("https://vault.internal:8200"),
		transit.WithMountPath("transit"), transit.WithKeyName("keyring"))
	if err != nil {
		return err
	}
	kek, err := kms.New("transit:vault.internal/transit/keyring", vault)
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{kek, escrow}}) // or keyring.Open
	use(n)
	return err
}

var _ = []any{godocNew}
