package keyringgrpc_test

import (
	"context"
	"errors"
	"reflect"

	"example.com/keyring"
)

// soon tries again when a keyring of the servers has changed, until there is no error, or one that will not pass by itself.
func soon(ctx context.Context, servers []*server, try func() error) error {
	for {
		wait := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
		for _, s := range servers {
			wait = append(wait, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(s.keys.Changed())})
		}
		err := try()
		if err == nil || !passing(err) {
			return err
		}
		if i, _, _ := reflect.Select(wait); i == 0 {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// passing reports whether an error may pass by itself: another server leads soon, or a key is on its way.
func passing(err error) bool {
	for _, e := range []error{keyring.ErrNotLeader, keyring.ErrNotReady, keyring.ErrUnknownKey, keyring.ErrKeyMissing} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// onLeader does something on the server that leads.
func onLeader(ctx context.Context, servers []*server, do func(*server) error) error {
	return soon(ctx, servers, func() (err error) {
		for _, s := range servers {
			if err = do(s); !errors.Is(err, keyring.ErrNotLeader) {
				break
			}
		}
		return err
	})
}

// seal has the leader rotate, and seal under the new key.
func seal(ctx context.Context, servers []*server, plaintext []byte) (sealed []byte, err error) {
	err = onLeader(ctx, servers, func(s *server) error {
		if _, err := s.keys.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			return err
		}
		sealed, err = s.keys.Encrypt(plaintext, nil)
		return err
	})
	return sealed, err
}

// open opens what was sealed a moment ago: a server may hear of the key after the others.
func open(ctx context.Context, s *server, sealed []byte) (plaintext []byte, err error) {
	err = soon(ctx, []*server{s}, func() error {
		plaintext, err = s.keys.Decrypt(sealed, nil)
		return err
	})
	return plaintext, err
}
