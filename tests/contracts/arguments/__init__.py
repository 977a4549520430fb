"""What every public function does with arguments that it should not have been given."""
