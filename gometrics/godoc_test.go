package gometrics_test

import (
	"context"

	"example.com/keyring"
	"example.com/keyring/gometrics"
	"example.com/keyring/node"
	"github.com/hashicorp/go-metrics"
)

// The functions below have the code of the package page to the letter, so that it compiles:
// TestPackagePagesShowCodeThatCompiles of the module's root looks for it here.

func godocStart(ctx context.Context, dir string, kek keyring.KEK) (*node.Node, error) {
	n, err := node.Start(ctx, node.Config{
		Dir:     dir,
		KEKs:    []keyring.KEK{kek},
		Metrics: gometrics.New(metrics.Default()),
	})
	return n, err
}

var _ = []any{godocStart}
