package keystore

// What becomes of a key file: here alone it is decided, for a server and for Inspect.

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// found is one key file as it was read. It may be Nomad's.
type found struct {
	id   meta.KeyID // by its name
	name string
	b    []byte // its content
	err  error  // why it could not be read, or nil
}

// isNomads reports whether the file is Nomad's, by its name or, where that is the keyring's too, by its content.
func (f found) isNomads() bool {
	if _, own := nks.ParseFileName(f.name); !own {
		return true
	}
	if f.err != nil || f.name != nks.FileName(f.id) || !nks.IsNomad(f.b) {
		return false
	}
	_, err := nks.DecodeFile(f.b)
	return err != nil
}

// judge returns the key in the file, or why a server with these KEKs has none of it.
func (f found) judge(ctx context.Context, keks *kek.Set) (*material, *Fault) {
	if f.isNomads() {
		return f.openNomads(keks)
	}
	return f.openOwn(ctx, keks)
}

// openOwn is judge of a file that is not Nomad's.
func (f found) openOwn(ctx context.Context, keks *kek.Set) (*material, *Fault) {
	if f.err != nil {
		return nil, readFault(f.name, f.err)
	}
	file, err := nks.DecodeFile(f.b)
	if errors.Is(err, nks.ErrVersion) {
		return nil, &Fault{Cause: Newer, Err: fmt.Errorf("key file %s: %w", f.name, err)}
	}
	if err != nil {
		return nil, &Fault{Cause: BadFile, Err: err}
	}
	if file.ID != f.id {
		return nil, &Fault{Cause: BadFile, Err: fmt.Errorf("%w: %w: it names %s", nks.ErrCorrupt, errMisnamed, meta.KeyID(file.ID))}
	}
	opened, err := keks.Decode(ctx, file)
	if err != nil {
		return nil, kekFault(err)
	}
	return &material{
		algorithm: file.Algorithm, check: file.Check, created: file.Created,
		secret: opened.Material, sum: sha256.Sum256(f.b), outdated: opened.Rewrap, versions: keks.Versions(file), altered: opened.Altered,
		version: file.Version, unproven: opened.Unproven,
	}, nil
}

// openNomads is judge of a file of Nomad's.
func (f found) openNomads(keks *kek.Set) (*material, *Fault) {
	m, err := f.decodeNomads(keks)
	if err != nil {
		return nil, &Fault{Cause: NomadFile, File: f.name, Err: fmt.Errorf("key file %s of Nomad: %w", f.name, err)}
	}
	return m, nil
}

func (f found) decodeNomads(keks *kek.Set) (*material, error) {
	if f.err != nil {
		return nil, f.err
	}
	file, err := nks.DecodeNomad(f.b)
	if err != nil {
		return nil, err
	}
	defer file.Wipe()
	if file.ID != f.id {
		return nil, fmt.Errorf("%w: %w: it names %s", nks.ErrCorrupt, errMisnamed, meta.KeyID(file.ID))
	}
	if file.Inline() && !keks.HasInline() {
		return nil, errNeedsInline
	}
	secret, algorithm, err := file.Open()
	if err != nil {
		return nil, err
	}
	return &material{
		algorithm: algorithm, check: secret.Check(f.id, algorithm), created: file.Created, secret: secret, fromNomad: true,
	}, nil
}

var errNeedsInline = errors.New("its KEK is in the file itself: only InlineKEK in KEKs or OldKEKs opens it")
