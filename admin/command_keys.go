package admin

// The commands about keys.

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"time"

	"example.com/keyring"
)

// status prints what the page shows.
func (c *cli) status(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("keys status", flag.ContinueOnError)
	asJSON := fs.Bool("json", false, "print JSON, for machines")
	if _, err := flags(fs, args, 0); err != nil {
		return err
	}
	var v Overview
	err := c.within(ctx, statusTime, func(ctx context.Context) (err error) {
		v, err = c.client.Overview(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if *asJSON {
		err = json.NewEncoder(c.out).Encode(v)
	} else {
		err = v.print(c.out)
	}
	if n := pressing(v.Problems); err == nil && n > 0 {
		err = finding{errors.New(count(n, "problem"))}
	}
	return err
}

func (c *cli) rotate(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("keys rotate", flag.ContinueOnError)
	full, compromised := fs.Bool("full", false, "re-encrypt all data under the new key"), fs.Bool("compromised", false, "revoke all other keys, and re-encrypt all data")
	var publish time.Duration
	fs.Func("publish", "the `time` for which the key is in the JWKS before it signs, as 5m", func(text string) (err error) {
		if publish, err = time.ParseDuration(text); err == nil && publish <= 0 {
			err = errors.New("want a time such as 5m")
		}
		return err
	})
	if _, err := flags(fs, args, 0); err != nil {
		return err
	}
	o := keyring.RotateOptions{Full: *full, Compromised: *compromised}
	if publish > 0 {
		o.Publish = time.Now().Add(publish)
	}
	var key KeyStatus
	err := c.within(ctx, waitTime, func(ctx context.Context) (err error) {
		key, err = c.client.Rotate(ctx, o)
		return err
	})
	if err == nil {
		fmt.Fprintf(c.out, "%s is %s\n", line(key.ID), line(string(key.State)))
	}
	return err
}

// keyArgument is the one argument of a command.
func keyArgument(fs *flag.FlagSet, args []string) (keyring.KeyID, error) {
	args, err := flags(fs, args, 1)
	if err != nil {
		return keyring.KeyID{}, err
	}
	id, err := keyring.ParseKeyID(args[0])
	if err != nil {
		return id, usage{fmt.Errorf("%s: %w", fs.Name(), err)}
	}
	return id, nil
}

func (c *cli) remove(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("keys remove", flag.ContinueOnError)
	force, now := fs.Bool("force", false, "remove it even if data is encrypted under it: that data is lost"), fs.Bool("now", false, "delete its files too: there is no undo")
	id, err := keyArgument(fs, args)
	if err != nil {
		return err
	}
	if err := c.client.Remove(ctx, id, keyring.RemoveOptions{Force: *force, Now: *now}); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s is removed\n", id)
	if *force {
		fmt.Fprintln(c.out, "the records that were still encrypted under it are lost: the log of the leader says how many, if it can count them")
		if !*now {
			fmt.Fprintln(c.out, "docs/keys.md says how to undo this, and what that costs; after RotationPolicy.Undo it is too late")
		}
	}
	return nil
}

func (c *cli) adopt(ctx context.Context, args []string) error {
	id, err := keyArgument(flag.NewFlagSet("keys adopt", flag.ContinueOnError), args)
	if err != nil {
		return err
	}
	if err := c.client.Adopt(ctx, id); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s is adopted\n", id)
	return nil
}

func (c *cli) rewrap(ctx context.Context, args []string) error {
	if _, err := flags(flag.NewFlagSet("keys rewrap", flag.ContinueOnError), args, 0); err != nil {
		return err
	}
	id, err := c.client.Rewrap(ctx)
	if err == nil {
		fmt.Fprintf(c.out, "the key files of %s are wrapped under its present KEKs alone\n", line(string(id)))
	}
	return err
}
